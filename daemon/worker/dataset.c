// SPDX-License-Identifier: Apache-2.0
#include "daemon/worker/dataset.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/error.h"
#include "daemon/model/tokenizer.h"

// A text is tokenised in pieces of at most this many bytes: large enough that cuts are rare, small enough that the offsets the
// tokenizer makes beside each id stay a passing cost.
#define DATASET_PIECE_BYTES (4u << 20)

struct dataset {
	struct dataset_options options;
	uint32_t *prefix;              // own copy
	uint32_t *tokens;              // packed sequences; the last may be incomplete
	size_t n_tokens, capacity;
	uint64_t n_sequences, n_held_out;
	uint32_t *train, *held_out;    // sequence numbers
	uint32_t *order;               // (n_train) of `epoch`
	uint64_t epoch;
};

int dataset_new(const struct dataset_options *options, struct dataset **ret, struct error *err)
{
	struct dataset *d = calloc(1, sizeof *d);
	if (!d || (options->n_prefix && !(d->prefix = malloc(options->n_prefix * sizeof *d->prefix)))) {
		dataset_free(d);
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory");
	}
	d->options = *options;
	if (options->n_prefix)
		memcpy(d->prefix, options->prefix, options->n_prefix * sizeof *d->prefix);
	d->options.prefix = d->prefix;
	d->epoch = UINT64_MAX;
	*ret = d;
	return 0;
}

struct dataset *dataset_free(struct dataset *d)
{
	if (d) {
		free(d->prefix);
		free(d->tokens);
		free(d->train);
		free(d->held_out);
		free(d->order);
		free(d);
	}
	return NULL;
}

static int dataset_reserve(struct dataset *d, size_t n, struct error *err)
{
	size_t need, bytes;
	if (__builtin_add_overflow(d->n_tokens, n, &need) || need > UINT32_MAX)
		return error_set(err, ERROR_TOO_LARGE, "corpus", "more than %u tokens", UINT32_MAX);
	if (need <= d->capacity)
		return 0;
	size_t capacity = d->capacity ? d->capacity : 1 << 16;
	while (capacity < need)
		capacity *= 2;         // need < 2^32: cannot wrap
	if (__builtin_mul_overflow(capacity, sizeof *d->tokens, &bytes))
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory");
	uint32_t *tokens = realloc(d->tokens, bytes);
	if (!tokens)
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory for %zu tokens", capacity);
	d->tokens = tokens;
	d->capacity = capacity;
	return 0;
}

int dataset_append(struct dataset *d, const uint32_t *tokens, size_t n, struct error *err)
{
	uint32_t L = d->options.sequence_length, n_prefix = d->options.n_prefix;
	for (size_t done = 0; done < n;) {
		int r = dataset_reserve(d, L, err);
		if (r)
			return r;
		if (d->n_tokens % L == 0) {
			if (n_prefix)
				memcpy(d->tokens + d->n_tokens, d->prefix, n_prefix * sizeof *d->prefix);
			d->n_tokens += n_prefix;
		}
		size_t room = L - d->n_tokens % L, take = n - done < room ? n - done : room;
		memcpy(d->tokens + d->n_tokens, tokens + done, take * sizeof *tokens);
		d->n_tokens += take;
		done += take;
	}
	return 0;
}

static bool is_blank(uint8_t c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

// Where a full buffer may be cut so that the tokens of the pieces are those of the whole (a new line that starts with a visible
// character), else at the last character boundary, else anywhere.
static size_t piece_cut(const uint8_t *text, size_t n)
{
	for (size_t i = n - 1; i > 0; i--)
		if (text[i - 1] == '\n' && !is_blank(text[i]))
			return i;
	for (size_t i = n - 1; i > 0 && i + 4 > n; i--)
		if ((text[i] & 0xc0) != 0x80)
			return i;
	return n;
}

static int piece_append(struct dataset *d, const struct tokenizer *t, bool specials, const char *text, size_t n, struct error *err)
{
	struct tokens tokens = {0};
	// An ill-formed byte becomes U+FFFD, three bytes: no text makes more tokens than that.
	int r = tokenizer_encode(t, text, n, specials, false, 3 * n + 16, &tokens, err);
	if (r == 0)
		r = dataset_append(d, tokens.ids, tokens.n, err);
	tokens_done(&tokens);
	return r;
}

// Reads until the buffer is full or the file ends.
static int piece_fill(int fd, char *buffer, size_t size, size_t *n, bool *ret_end)
{
	while (*n < size) {
		ssize_t got = read(fd, buffer + *n, size - *n);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0) {
			*ret_end = true;
			return 0;
		}
		*n += (size_t)got;
	}
	return 0;
}

int dataset_append_file(struct dataset *d, const struct tokenizer *t, bool specials, const char *path, struct error *err)
{
	int r = 0;
	size_t n = 0;
	bool end = false;
	char *buffer = NULL;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_system(err, errno, "corpus", "cannot open %s", path);
	if (!(buffer = malloc(DATASET_PIECE_BYTES))) {
		r = error_set(err, ERROR_MEMORY, "corpus", "out of memory");
		goto out;
	}
	while (!end) {
		r = piece_fill(fd, buffer, DATASET_PIECE_BYTES, &n, &end);
		if (r) {
			r = error_system(err, r, "corpus", "cannot read %s", path);
			goto out;
		}
		size_t cut = end ? n : piece_cut((const uint8_t *)buffer, n);
		r = piece_append(d, t, specials, buffer, cut, err);
		if (r)
			goto out;
		memmove(buffer, buffer + cut, n - cut);
		n -= cut;
	}
	if (tokenizer_eos(t) >= 0)
		r = dataset_append(d, &(uint32_t){(uint32_t)tokenizer_eos(t)}, 1, err);
out:
	free(buffer);
	close(fd);
	return r;
}

static uint64_t held_out_count(const struct dataset *d)
{
	if (d->options.held_out <= 0)
		return 0;
	uint64_t n = (uint64_t)llround(d->options.held_out * (double)d->n_sequences);
	n = n < d->options.held_out_max ? n : d->options.held_out_max;
	return n ? n : 1;
}

int dataset_split(struct dataset *d, struct error *err)
{
	uint64_t n = d->n_sequences = d->n_tokens / d->options.sequence_length;
	uint64_t held = d->n_held_out = held_out_count(d);
	if (n <= held)
		return error_set(err, ERROR_INVALID, "corpus", "%zu tokens make %llu sequences of %u, %llu of them held out: too little to train on",
				 d->n_tokens, (unsigned long long)n, d->options.sequence_length, (unsigned long long)held);
	d->train = malloc((n - held) * sizeof *d->train);
	d->order = malloc((n - held) * sizeof *d->order);
	d->held_out = malloc((held + 1) * sizeof *d->held_out);
	if (!d->train || !d->order || !d->held_out)
		return error_set(err, ERROR_MEMORY, "corpus", "out of memory");
	uint64_t n_train = 0, n_held = 0;
	for (uint64_t i = 0; i < n; i++) {     // n < 2^32 and held <= 65536: the products fit
		if ((i + 1) * held / n > i * held / n)
			d->held_out[n_held++] = (uint32_t)i;
		else
			d->train[n_train++] = (uint32_t)i;
	}
	return 0;
}

uint64_t dataset_n_train(const struct dataset *d)
{
	return d->n_sequences - d->n_held_out;
}

uint64_t dataset_n_held_out(const struct dataset *d)
{
	return d->n_held_out;
}

// A counter-based generator (splitmix64's finaliser over the parts): no state to keep, so nothing to save in a checkpoint.
static uint64_t random_at(uint64_t seed, uint64_t epoch, uint64_t i)
{
	uint64_t parts[3] = {seed, epoch, i}, x = 0;
	for (int k = 0; k < 3; k++) {
		x += parts[k] + UINT64_C(0x9e3779b97f4a7c15);
		x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
		x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
		x ^= x >> 31;
	}
	return x;
}

static void order_fill(struct dataset *d, uint64_t epoch)
{
	uint64_t n = dataset_n_train(d);
	memcpy(d->order, d->train, n * sizeof *d->order);
	for (uint64_t i = n - 1; i > 0; i--) {         // Fisher-Yates
		uint64_t j = (uint64_t)((unsigned __int128)random_at(d->options.seed, epoch, i) * (i + 1) >> 64);
		uint32_t swap = d->order[i];
		d->order[i] = d->order[j];
		d->order[j] = swap;
	}
	d->epoch = epoch;
}

static const uint32_t *sequence_at(const struct dataset *d, uint32_t i)
{
	return d->tokens + (size_t)i * d->options.sequence_length;
}

const uint32_t *dataset_train_at(struct dataset *d, uint64_t position)
{
	uint64_t n = dataset_n_train(d);
	if (d->epoch != position / n)
		order_fill(d, position / n);
	return sequence_at(d, d->order[position % n]);
}

const uint32_t *dataset_held_out_at(const struct dataset *d, uint64_t i)
{
	return sequence_at(d, d->held_out[i]);
}

struct content_id dataset_id(const struct dataset *d)
{
	struct sequence all = {d->tokens, (uint32_t)(d->n_sequences * d->options.sequence_length)};
	return sequence_id(&all);
}
