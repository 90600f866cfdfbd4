// SPDX-License-Identifier: Apache-2.0
// What went wrong, once: a code for programs, a field for the caller who must mend the input, a sentence for people.
#pragma once

enum error_code {
	ERROR_NONE,
	ERROR_INVALID,       // the input breaks a rule; `field` names where            400  -EINVAL
	ERROR_UNSUPPORTED,   // well formed, but not something this build can do         422  -EOPNOTSUPP
	ERROR_TOO_LARGE,     // over a stated limit                                      413  -E2BIG
	ERROR_NOT_FOUND,     // no such route, run, record, file                         404  -ENOENT
	ERROR_CONFLICT,      // right in itself, wrong now (name taken, fingerprint)     409  -EEXIST
	ERROR_UNAUTHORIZED,  // who asks is not known: no token, a wrong one, an old one   401  -EACCES
	ERROR_FORBIDDEN,     // who asks is known and may not                            403  -EPERM
	ERROR_OVERLOADED,    // a queue is full: try again later                         429  -EAGAIN
	ERROR_UNAVAILABLE,   // starting, draining or poisoned                           503  -ESHUTDOWN
	ERROR_DEADLINE,      // the caller's deadline passed first                       504  -ETIMEDOUT
	ERROR_CANCELLED,     // the caller took it back                                  499  -ECANCELED
	ERROR_NOT_FINITE,    // NaN or infinity where a number must be                   500  -EDOM
	ERROR_STORE,         // the disk refused                                         507  -ENOSPC
	ERROR_CORRUPT,       // stored or received bytes fail their checks               500  -EBADMSG
	ERROR_IO,            // a system call failed                                     500  -EIO
	ERROR_MEMORY,        //                                                          503  -ENOMEM
	ERROR_INTERNAL,      // a broken invariant of ours                               500  -EPROTO
	N_ERROR_CODES
};

struct error {
	enum error_code code;
	unsigned retry_s;    // with ERROR_OVERLOADED: after how many seconds it may be better; 0 = nobody knows
	char field[64];      // "sequences[3].tokens[17]", a key, a file; empty when it would not help
	char message[320];
};

// Fills `err` (NULL is allowed) and returns the code's -errno, so that `return error_set(...)` is the whole error path.
// `field` may be NULL. Bytes that are not printable ASCII are escaped: messages can hold pieces of hostile input.
int error_set(struct error *err, enum error_code code, const char *field, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

// The same from errno: appends strerror(errno_value) (positive or negative) to the sentence and picks the code from it.
int error_system(struct error *err, int errno_value, const char *field, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

const char *error_name(enum error_code code);              // "invalid", "too_large", ...: stable, on the wire
enum error_code error_from_name(const char *name);         // ERROR_INTERNAL when unknown
int error_errno(enum error_code code);                     // -EINVAL, ...
int error_http_status(enum error_code code);               // 400, ...

#ifdef __clang_analyzer__
// It reads one file at a time, and takes an error for no error, and what was then not made for made, where it does not know that the two
// above return nothing else than what is below 0.
static inline int error_below_0(int r)
{
	__builtin_assume(r < 0);
	return r;
}
#define error_set(...) error_below_0(error_set(__VA_ARGS__))
#define error_system(...) error_below_0(error_system(__VA_ARGS__))
#endif
