// SPDX-License-Identifier: Apache-2.0
// The daemon's settings as a struct, made from options.def, and the checks that need more than one row.
#pragma once

#include "daemon/config.h"
#include "daemon/teacher/teacher.h"

struct error;

#define OPTIONS_MAX_TEACHERS 64
#define OPTIONS_PATH_BYTES 4096

#define OPTION_C_STRING char *
#define OPTION_C_LIST struct config_list
#define OPTION_C_INTEGER int64_t
#define OPTION_C_SIZE uint64_t
#define OPTION_C_AMOUNT struct config_amount
#define OPTION_C_DURATION uint64_t
#define OPTION_C_REAL double
#define OPTION_C_BOOL bool
#define OPTION_C_CHOICE int

struct options {
#define OPTION(field, name, type, ...) OPTION_C_##type field;
#include "daemon/options.def"
#undef OPTION
	struct {                           // who set each: "kdserved.conf:12", "--store"; NULL = the default
#define OPTION(field, ...) char *field;
#include "daemon/options.def"
#undef OPTION
	} where;
};

extern const struct config_option options_table[];
extern const size_t options_count;

int options_init(struct options *o, struct error *err);
// The same under systemd: store, runs and socket lie in the directories it made for the unit ($STATE_DIRECTORY, $RUNTIME_DIRECTORY).
int options_init_unit(struct options *o, struct error *err);
void options_done(struct options *o);
// Checks that need several rows: a teacher is named, a door is open, addresses parse, none is remote without tokens, and TLS or
// allow-remote. Where two rows are at odds, the error names who set either.
int options_check(const struct options *o, struct error *err);
void options_check_all(const struct options *o, struct config_errors *all);     // every error instead of the first
void options_warn(const struct options *o, struct config_errors *all);          // what is allowed and surely not meant
// The teachers of o->teacher, as many (OPTIONS_MAX_TEACHERS at most), of different names: what stands before "=", else the last part of the
// path. Paths are the options'.
int options_teachers(const struct options *o, struct teacher_source ret_sources[OPTIONS_MAX_TEACHERS], struct error *err);
// What the settings name is there: teachers, tokens, certificates; directories can be written to.
void options_check_files(const struct options *o, struct config_errors *all);
int options_compression(const struct options *o, int *ret_level, struct error *err);      // of store-compression (packed.h)
// The file of tokens: the setting's, or that of the unit's credentials. False: there are none.
bool options_tokens(const struct options *o, char ret_path[OPTIONS_PATH_BYTES]);
// Certificate and key of both doors, likewise. False: they speak without TLS.
bool options_tls(const struct options *o, char ret_certificate[OPTIONS_PATH_BYTES], char ret_key[OPTIONS_PATH_BYTES]);
// One address of a door ("tcp:ADDR:PORT", ...): it parses, and other machines reach it only where they may. `name`: http or socket.
int options_check_address(const struct options *o, const char *name, const char *text, struct error *err);
const char *options_device(const struct options *o);      // "auto", "cpu", ...
