// SPDX-License-Identifier: Apache-2.0
// Private to the frame codec.
#pragma once

struct error;
struct reader;

// The one end of every decoder: everything read, nothing left over. `kind` is for the message.
int frame_check_end(const struct reader *r, const char *kind, struct error *err);
