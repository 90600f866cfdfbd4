// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/progress.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/jansson.h"

struct progress {
	int fd, metrics_fd;
	bool terminal, line_open;
};

int progress_open(const char *metrics_path, int fd, struct progress **ret, struct error *err)
{
	struct progress *p = calloc(1, sizeof *p);
	if (!p)
		return error_set(err, ERROR_MEMORY, NULL, "out of memory");
	p->metrics_fd = open(metrics_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
	if (p->metrics_fd < 0) {
		free(p);
		return error_system(err, errno, NULL, "cannot open %s", metrics_path);
	}
	p->fd = fd;
	p->terminal = isatty(STDERR_FILENO);
	*ret = p;
	return 0;
}

void progress_close(struct progress *p)
{
	if (!p)
		return;
	if (p->line_open)
		fputc('\n', stderr);
	close(p->metrics_fd);
	free(p);
}

static void number_add(json_t *j, const char *key, double v)
{
	if (isfinite(v))               // JSON has no other numbers
		json_object_set_new(j, key, json_real(v));
}

static void evaluations_add(json_t *j, const struct progress_report *r)
{
	number_add(j, "held_out_kl_before", r->before.kl);
	number_add(j, "held_out_kl", r->last.kl);
	number_add(j, "held_out_kl_best", r->best.kl);
	number_add(j, "held_out_ce", r->last.ce);
	number_add(j, "held_out_perplexity", exp(r->last.ce));
	number_add(j, "held_out_agreement", r->last.agreement);
	number_add(j, "teacher_perplexity", exp(r->last.teacher_ce));
	number_add(j, "held_out_bits_per_byte", r->last.bits_per_byte);
	number_add(j, "teacher_bits_per_byte", r->last.teacher_bits_per_byte);
	number_add(j, "guard_residual", r->guard_residual);
	number_add(j, "guard_alarms", r->guard_alarms);
}

// "loss_forward_kl": the supervisor takes flat names.
static const char *key_of(const char *prefix, const char *name, char *key, size_t room)
{
	snprintf(key, room, "%s%s", prefix, name);
	for (char *p = key; *p; p++)
		if (*p == '-')
			*p = '_';
	return key;
}

static void losses_add(json_t *j, const struct progress_report *r)
{
	char key[64];
	for (uint32_t i = 0; i < objective_n_terms(r->objective); i++) {
		const char *name = objective_name(r->objective, i);
		number_add(j, key_of("loss_", name, key, sizeof key), r->values[i]);
		number_add(j, key_of("kl_", name, key, sizeof key), r->divergences[i]);
	}
}

static void drawn_add(json_t *j, const struct progress_report *r)
{
	const struct student_drawn *d = &r->drawn;
	double n = (double)d->n;
	number_add(j, "rollout_chance", r->rollout_chance);
	if (r->n_replay)
		number_add(j, "rollout_buffer", (double)r->n_replay);
	if (!d->n)
		return;
	number_add(j, r->replayed ? "rollouts_replayed" : "rollouts", (double)d->n_passages);
	number_add(j, "rollout_tokens", n / (double)d->n_passages);
	number_add(j, "rollout_k1", d->k1 / n);
	number_add(j, "rollout_k2", d->k2 / n);
	number_add(j, "rollout_k3", d->k3 / n);
}

// In words: form, support, weight, temperature of each.
static void objective_add_words(json_t *j, const struct objective *o)
{
	char key[64], words[256];
	for (uint32_t i = 0; i < objective_n_terms(o); i++) {
		objective_describe(o, i, words, sizeof words);
		json_object_set_new(j, key_of("objective_", objective_name(o, i), key, sizeof key), json_string(words));
	}
}

static json_t *report_to_json(const struct progress_report *r)
{
	json_t *j = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "state", r->state, "device", r->device, "step", (json_int_t)r->step,
			      "steps", (json_int_t)r->steps, "positions", (json_int_t)r->n_positions, "masked", (json_int_t)r->n_masked,
			      "n_parameters", (json_int_t)r->n_parameters);
	if (!j)
		return NULL;
	if (r->objective)
		objective_add_words(j, r->objective);
	if (r->tokens_per_second > 0) {        // not before the first step of this process
		number_add(j, "loss", r->loss);
		losses_add(j, r);
		drawn_add(j, r);
		number_add(j, "learning_rate", r->learning_rate);
		number_add(j, "gradient_norm", r->gradient_norm);
		number_add(j, "tokens_per_second", r->tokens_per_second);
	}
	if (r->teacher_parameters > 0) {
		number_add(j, "teacher_parameters", r->teacher_parameters);
		number_add(j, "capacity_ratio", r->teacher_parameters / r->best_teacher);
	}
	number_add(j, "seconds", r->seconds);
	number_add(j, "teacher_wait_share", r->wait_share);
	number_add(j, "cached_share", r->cached_share);
	if (r->eta_seconds >= 0)
		number_add(j, "eta_seconds", r->eta_seconds);
	if (r->n_evaluations)
		evaluations_add(j, r);
	return j;
}

static void terminal_say(struct progress *p, const struct progress_report *r)
{
	fprintf(stderr, "\r%s step %llu/%llu  loss %.4f  lr %.2e  %.0f tokens/s, %.1f %% waiting", r->state, (unsigned long long)r->step,
		(unsigned long long)r->steps, r->loss, r->learning_rate, r->tokens_per_second, 100 * r->wait_share);
	if (r->n_evaluations)
		fprintf(stderr, "  held-out KL %.4f (%.4f before)", r->last.kl, r->before.kl);
	if (r->eta_seconds >= 0)
		fprintf(stderr, "  %.0f s left", r->eta_seconds);
	fputs("\033[K", stderr);
	p->line_open = true;
}

// A line is short enough to go whole or not at all. When the supervisor is behind, it is dropped: training does not wait for a reader.
static int line_send(int fd, const char *line, size_t n)
{
	ssize_t done = send(fd, line, n, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (done < 0 && errno == ENOTSOCK)
		done = write(fd, line, n);
	return done < 0 && (errno == EPIPE || errno == ECONNRESET || errno == EBADF) ? -EPIPE : 0;
}

int progress_say(struct progress *p, const struct progress_report *r)
{
	int result = 0;
	json_t *j = report_to_json(r);
	char *text = j ? jansson_dump(j, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
	size_t n = text ? strlen(text) : 0;
	json_decref(j);
	if (text) {                    // out of memory: a line less
		text[n] = '\n';        // in place of the terminator
		if (p->fd >= 0)
			result = line_send(p->fd, text, n + 1);
		ssize_t done = write(p->metrics_fd, text, n + 1);
		(void)done;            // a full disk must not end the run; the next checkpoint will say so
		free(text);
	}
	if (p->terminal)
		terminal_say(p, r);
	return result;
}
