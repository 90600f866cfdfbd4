// SPDX-License-Identifier: Apache-2.0
// Shared by the control*.c files only.
#pragma once

#include <stddef.h>

#include "daemon/server/control.h"

struct error;
struct principal;
struct service;

// id: what stood in the path for {id}
struct control_input { struct service *service; struct principal *principal; const char *id; const char *body; size_t n; };

int control_check_loaded(const struct service *s, struct error *err);    // for what needs the model, and stays useful while draining
int control_get_status(const struct control_input *in, struct control_reply *out, struct error *err);
int control_post_weights(const struct control_input *in, struct control_reply *out, struct error *err);
int control_post_runs(const struct control_input *in, struct control_reply *out, struct error *err);
int control_get_runs(const struct control_input *in, struct control_reply *out, struct error *err);
int control_get_run(const struct control_input *in, struct control_reply *out, struct error *err);
int control_get_history(const struct control_input *in, struct control_reply *out, struct error *err);
int control_delete_run(const struct control_input *in, struct control_reply *out, struct error *err);
