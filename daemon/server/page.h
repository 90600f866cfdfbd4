// SPDX-License-Identifier: Apache-2.0
// The status page: files of page/, built in. They load nothing from elsewhere, and say so in a header that browsers enforce.
#pragma once

struct control_input;
struct control_reply;
struct error;

#define PAGE_POLICY "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " \
	"form-action 'none'; base-uri 'none'; frame-ancestors 'none'"

int page_get_index(const struct control_input *in, struct control_reply *out, struct error *err);
int page_get_style(const struct control_input *in, struct control_reply *out, struct error *err);
int page_get_script(const struct control_input *in, struct control_reply *out, struct error *err);
