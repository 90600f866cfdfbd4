// SPDX-License-Identifier: Apache-2.0
// The only file that knows io_uring. Its one complication: a ring may break while operations are in flight (submit refused for
// good); then what is in flight is waited for, the ring is given up and everything later goes through pread, pwrite and fsync.
//
// No operation is linked to another: a short write in a chain would cancel its fsync.
#include "daemon/ring.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "common/error.h"

// -EAGAIN and -EINTR in a row before they count as failure: the first few at once, the rest 1 ms apart, so two seconds.
#define RETRIES_AT_ONCE 16
#define RETRIES_MAX 2000

struct ring {
	struct io_uring uring;
	bool is_uring;
	unsigned n_entries;
	unsigned n_busy;             // in the kernel's hands or queued for it
	unsigned n_queued;           // of these, not yet handed over
	const uint8_t *memory;       // registered as buffer 0
	size_t memory_bytes;
	bool has_files;              // a table of one slot is registered
	int file;                    // in it; -1 = none
};

int ring_open(unsigned n_entries, struct ring **ret_ring, struct error *err)
{
	struct ring *r = calloc(1, sizeof *r);
	if (!r)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for a ring");
	r->n_entries = n_entries;
	r->file = -1;
	struct io_uring_params p = {0};
	if (io_uring_queue_init_params(n_entries, &r->uring, &p) == 0) {
		// Without NODROP an overflowing completion queue loses results, and with them the truth about a write.
		if (p.features & IORING_FEAT_NODROP)
			r->is_uring = true;
		else
			io_uring_queue_exit(&r->uring);
	}
	*ret_ring = r;
	return 0;
}

struct ring *ring_close(struct ring *r)
{
	if (!r)
		return NULL;
	assert(r->n_busy == 0);
	if (r->is_uring)
		io_uring_queue_exit(&r->uring);
	free(r);
	return NULL;
}

bool ring_is_uring(const struct ring *r)
{
	return r->is_uring;
}

uint64_t ring_n_overflows(const struct ring *r)
{
	return r->is_uring && r->uring.cq.koverflow ? *r->uring.cq.koverflow : 0;
}

void ring_register_memory(struct ring *r, void *data, size_t n)
{
	struct iovec memory = {.iov_base = data, .iov_len = n};
	if (!r->is_uring || io_uring_register_buffers(&r->uring, &memory, 1) < 0)
		return;
	r->memory = data;
	r->memory_bytes = n;
}

void ring_register_file(struct ring *r, int fd)
{
	if (!r->is_uring || (fd < 0 && r->file < 0))
		return;
	int rc = r->has_files ? io_uring_register_files_update(&r->uring, 0, &fd, 1) : io_uring_register_files(&r->uring, &fd, 1);
	if (rc >= 0)
		r->has_files = true;
	r->file = rc >= 0 ? fd : -1;
}

bool ring_is_registered(const struct ring *r)
{
	return r->is_uring && r->memory && r->file >= 0;
}

// Bytes still wanted begin here: with O_DIRECT at a whole block.
static size_t op_begin(const struct ring_op *op)
{
	return op->align ? op->n_done - op->n_done % op->align : op->n_done;
}

// An operation that brought nothing forward may be tried again, but not forever.
static bool op_retry(struct ring_op *op, int failure)
{
	if (op->n_retries++ >= RETRIES_MAX) {
		op->result = failure;
		return false;
	}
	if (op->n_retries > RETRIES_AT_ONCE)
		nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
	return true;
}

// Takes one result into the operation. True when the operation is over, false when it must be started again (the rest of a short write,
// or a retry).
static bool op_take(struct ring_op *op, int result)
{
	size_t begin = op_begin(op);
	if (result == -EAGAIN || result == -EINTR)
		return !op_retry(op, result == -EAGAIN ? -EIO : result);
	if (result < 0 || op->kind == RING_FSYNC) {
		op->result = result < 0 ? result : 0;
		return true;
	}
	if (result == 0 && op->kind == RING_READ)       // the end of the file
		return true;
	if (result == 0 || (size_t)result > op->n - begin) {    // no progress: never loop on it
		op->result = -EIO;
		return true;
	}
	size_t before = begin;
	op->n_done = begin + (size_t)result;
	op->result = 0;
	if (op->n_done == op->n)
		return true;
	if (op_begin(op) == before && op->kind == RING_READ)       // part of a block: the file ends in it
		return true;
	if (op_begin(op) == before && op->n_retries++ >= RETRIES_AT_ONCE)      // never a whole block
		op->result = -EIO;
	if (op_begin(op) == before)
		return op->result < 0;
	op->n_retries = 0;
	return false;
}

static void op_run(struct ring_op *op)
{
	int result;
	do {
		size_t begin = op_begin(op);
		ssize_t n;
		if (op->kind == RING_FSYNC)
			n = fsync(op->fd);
		else if (op->kind == RING_WRITE)
			n = pwrite(op->fd, op->data + begin, op->n - begin, (off_t)(op->offset + begin));
		else
			n = pread(op->fd, op->data + begin, op->n - begin, (off_t)(op->offset + begin));
		result = n < 0 ? -errno : (int)n;
	} while (!op_take(op, result));
	op->busy = false;
}

static void op_start(struct ring *r, struct ring_op *op, bool now);
static void ring_give_up(struct ring *r);

static bool ring_enter(struct ring *r)
{
	for (unsigned n = 0; r->n_queued && n < RETRIES_MAX; n++) {
		int rc = io_uring_submit(&r->uring);
		if (rc >= 0) {
			r->n_queued -= (unsigned)rc < r->n_queued ? (unsigned)rc : r->n_queued;
			continue;
		}
		if (rc != -EAGAIN && rc != -EINTR && rc != -EBUSY)
			return false;
		if (n > RETRIES_AT_ONCE)
			nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
	}
	return r->n_queued == 0;
}

static void ring_take(struct ring *r, struct io_uring_cqe *cqe)
{
	struct ring_op *op = io_uring_cqe_get_data(cqe);
	int result = cqe->res;
	io_uring_cqe_seen(&r->uring, cqe);
	if (!op)
		return;
	r->n_busy--;
	if (op_take(op, result))
		op->busy = false;
	else
		op_start(r, op, true);
}

// Waits for one completion and takes it. Only signals make the wait return early.
static void ring_wait(struct ring *r)
{
	struct io_uring_cqe *cqe = NULL;
	int rc = io_uring_wait_cqe(&r->uring, &cqe);
	if (rc == 0 && cqe)        // else -EINTR; the caller asks again
		ring_take(r, cqe);
}

// The ring refused for good: the operations it never took are run here, the others waited for, and it goes. Refused entries die with it,
// unseen by the kernel.
static void ring_give_up(struct ring *r)
{
	unsigned n = r->n_queued, tail = r->uring.sq.sqe_tail, mask = *r->uring.sq.kring_mask;
	r->is_uring = false;        // what comes back half done is finished with pread and pwrite
	r->n_queued = 0;
	r->n_busy -= n;
	for (unsigned i = tail - n; i != tail; i++)
		op_run((struct ring_op *)(uintptr_t)r->uring.sq.sqes[i & mask].user_data);
	while (r->n_busy)
		ring_wait(r);
	io_uring_queue_exit(&r->uring);
}

static void op_prepare(const struct ring *r, struct io_uring_sqe *sqe, struct ring_op *op)
{
	size_t begin = op_begin(op);
	uint8_t *data = op->data ? op->data + begin : NULL;        // RING_FSYNC has none
	unsigned n = (unsigned)(op->n - begin);
	bool fixed_file = r->file >= 0 && op->fd == r->file;
	int fd = fixed_file ? 0 : op->fd;
	bool fixed = op->kind == RING_WRITE && r->memory && op->data >= r->memory && op->data + op->n <= r->memory + r->memory_bytes;
	if (op->kind == RING_FSYNC)
		io_uring_prep_fsync(sqe, fd, 0);
	else if (op->kind == RING_READ)
		io_uring_prep_read(sqe, fd, data, n, op->offset + begin);
	else if (fixed)
		io_uring_prep_write_fixed(sqe, fd, data, n, op->offset + begin, 0);
	else
		io_uring_prep_write(sqe, fd, data, n, op->offset + begin);
	if (fixed_file)
		sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, op);
}

static void op_start(struct ring *r, struct ring_op *op, bool now)
{
	struct io_uring_sqe *sqe = r->is_uring ? io_uring_get_sqe(&r->uring) : NULL;
	if (!sqe && r->is_uring && ring_enter(r))
		sqe = io_uring_get_sqe(&r->uring);
	if (!sqe) {
		op_run(op);
		return;
	}
	op_prepare(r, sqe, op);
	r->n_queued++;
	r->n_busy++;
	if (now && !ring_enter(r))
		ring_give_up(r);
}

void ring_queue(struct ring *r, struct ring_op *op)
{
	assert(!op->busy && (op->kind == RING_FSYNC || (op->n > 0 && op->n <= 1u << 30)));
	while (r->is_uring && r->n_busy >= r->n_entries)
		ring_reap(r);
	op->n_done = 0;
	op->result = 0;
	op->n_retries = 0;
	op->busy = true;
	op_start(r, op, false);
}

void ring_submit(struct ring *r, struct ring_op *op)
{
	ring_queue(r, op);
	if (r->is_uring && !ring_enter(r))
		ring_give_up(r);
}

void ring_reap(struct ring *r)
{
	if (r->is_uring && !ring_enter(r))
		ring_give_up(r);
	if (r->is_uring && r->n_busy)
		ring_wait(r);
}

void ring_poll(struct ring *r)
{
	struct io_uring_cqe *cqe = NULL;
	while (r->is_uring && r->n_busy && io_uring_peek_cqe(&r->uring, &cqe) == 0 && cqe)
		ring_take(r, cqe);
}

int ring_complete(struct ring *r, struct ring_op *op)
{
	while (op->busy)
		ring_reap(r);
	return op->result;
}
