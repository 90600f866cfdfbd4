// SPDX-License-Identifier: Apache-2.0
#include "daemon/server/page.h"

#include <stddef.h>

#include "daemon/server/control_internal.h"

// Made by the Makefile: the files as lists of bytes.
static const unsigned char page[] = {
#include "daemon/server/page_html.h"
};
static const unsigned char style[] = {
#include "daemon/server/page_css.h"
};
static const unsigned char script[] = {
#include "daemon/server/page_js.h"
};

static int give(struct control_reply *out, const char *type, const unsigned char *bytes, size_t n)
{
	out->content_type = type;
	out->policy = PAGE_POLICY;
	buffer_add(&out->body, bytes, n);
	return 0;
}

int page_get_index(const struct control_input *in, struct control_reply *out, struct error *err)
{
	(void)in;
	(void)err;
	return give(out, "text/html; charset=utf-8", page, sizeof page);
}

int page_get_style(const struct control_input *in, struct control_reply *out, struct error *err)
{
	(void)in;
	(void)err;
	return give(out, "text/css; charset=utf-8", style, sizeof style);
}

int page_get_script(const struct control_input *in, struct control_reply *out, struct error *err)
{
	(void)in;
	(void)err;
	return give(out, "text/javascript; charset=utf-8", script, sizeof script);
}
