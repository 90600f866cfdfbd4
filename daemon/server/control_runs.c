// SPDX-License-Identifier: Apache-2.0
// Training runs: start, list, look at, stop. The supervisor does it; here it gets its words.
#include <stdlib.h>
#include <string.h>

#include "common/buffer.h"
#include "common/error.h"
#include "daemon/server/control_internal.h"
#include "daemon/server/json.h"
#include "daemon/server/service.h"
#include "daemon/train/supervisor.h"

static int check_runs(const struct control_input *in, struct error *err)
{
	if (!service_supervisor(in->service))
		return error_set(err, ERROR_UNSUPPORTED, NULL, "this server takes no training runs (no runs directory is set)");
	return 0;
}

static int reply_run(const struct control_input *in, const char *id, struct control_reply *out, struct error *err)
{
	char *json = NULL;
	int r = supervisor_get(service_supervisor(in->service), id, &json, err);
	if (!r)
		buffer_text(&out->body, json);
	free(json);
	return r;
}

int control_post_runs(const struct control_input *in, struct control_reply *out, struct error *err)
{
	struct json_run run = {0};
	char id[RUN_ID_MAX + 1];
	int r = check_runs(in, err);
	if (!r)
		r = service_check_ready(in->service, err);
	if (!r)
		r = json_read_run(in->body, in->n, &run, err);
	if (!r)
		r = supervisor_start(service_supervisor(in->service), run.name, run.config, strlen(run.config), id, err);
	if (!r) {
		out->status = 201;
		r = reply_run(in, id, out, err);
	}
	json_run_done(&run);
	return r;
}

int control_get_runs(const struct control_input *in, struct control_reply *out, struct error *err)
{
	char *json = NULL;
	int r = check_runs(in, err);
	if (!r)
		r = supervisor_list(service_supervisor(in->service), &json, err);
	if (!r)
		buffer_text(&out->body, json);
	free(json);
	return r;
}

int control_get_run(const struct control_input *in, struct control_reply *out, struct error *err)
{
	int r = check_runs(in, err);
	return r ? r : reply_run(in, in->id, out, err);
}

int control_get_history(const struct control_input *in, struct control_reply *out, struct error *err)
{
	char *json = NULL;
	int r = check_runs(in, err);
	if (!r)
		r = supervisor_history(service_supervisor(in->service), in->id, &json, err);
	if (!r)
		buffer_text(&out->body, json);
	free(json);
	return r;
}

int control_delete_run(const struct control_input *in, struct control_reply *out, struct error *err)
{
	int r = check_runs(in, err);
	if (!r)
		r = supervisor_stop(service_supervisor(in->service), in->id, err);
	return r ? r : reply_run(in, in->id, out, err);
}
