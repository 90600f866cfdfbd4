// SPDX-License-Identifier: Apache-2.0
// The only file that knows io_uring. Its one complication: a ring may break while operations are in flight (submit refused for
// good); then what is in flight is waited for, the ring is given up and everything later goes through pwrite and fsync.
//
// Neither registered buffers nor a registered file: with writes of 1 MiB both were measured to make no difference, and registered
// buffers count against RLIMIT_MEMLOCK. No operation is linked to another: a short write in a chain would cancel its fsync.
#include "daemon/store/ring.h"

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
	unsigned n_busy;
};

int ring_open(unsigned n_entries, struct ring **ret_ring, struct error *err)
{
	struct ring *r = calloc(1, sizeof *r);
	if (!r)
		return error_set(err, ERROR_MEMORY, NULL, "no memory for the store's ring");
	r->n_entries = n_entries;
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

// Takes one result into the operation. True when the operation is over, false when it must be started again (the rest of a short write,
// or a retry).
static bool op_take(struct ring_op *op, int result)
{
	if (result == -EAGAIN || result == -EINTR) {
		if (op->n_retries++ >= RETRIES_MAX) {
			op->result = result == -EAGAIN ? -EIO : result;
			return true;
		}
		if (op->n_retries > RETRIES_AT_ONCE)
			nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
		return false;
	}
	if (result < 0 || op->kind == RING_FSYNC) {
		op->result = result < 0 ? result : 0;
		return true;
	}
	if (result == 0 || (size_t)result > op->n - op->n_written) {    // no progress: never loop on it
		op->result = -EIO;
		return true;
	}
	op->n_written += (size_t)result;
	op->n_retries = 0;
	op->result = 0;
	return op->n_written == op->n;
}

static void op_run(struct ring_op *op)
{
	int result;
	do {
		ssize_t n = op->kind == RING_FSYNC
			? fsync(op->fd)
			: pwrite(op->fd, op->data + op->n_written, op->n - op->n_written, (off_t)(op->offset + op->n_written));
		result = n < 0 ? -errno : (int)n;
	} while (!op_take(op, result));
	op->busy = false;
}

static void op_start(struct ring *r, struct ring_op *op);

// Waits for one completion and takes it. Only signals make the wait return early.
static void ring_reap(struct ring *r)
{
	struct io_uring_cqe *cqe = NULL;
	int rc = io_uring_wait_cqe(&r->uring, &cqe);
	if (rc < 0 || !cqe)        // -EINTR; the caller asks again
		return;
	struct ring_op *op = io_uring_cqe_get_data(cqe);
	int result = cqe->res;
	io_uring_cqe_seen(&r->uring, cqe);
	if (!op)
		return;
	r->n_busy--;
	if (op_take(op, result))
		op->busy = false;
	else
		op_start(r, op);
}

// The ring refused an operation for good: wait for the others, go on without it. The refused entry dies with the ring, unseen
// by the kernel.
static void ring_give_up(struct ring *r)
{
	r->is_uring = false;        // what comes back half done is finished with pwrite
	while (r->n_busy)
		ring_reap(r);
	io_uring_queue_exit(&r->uring);
}

static bool ring_enter(struct ring *r)
{
	for (unsigned n = 0; n < RETRIES_MAX; n++) {
		int rc = io_uring_submit(&r->uring);
		if (rc >= 1)
			return true;
		if (rc < 0 && rc != -EAGAIN && rc != -EINTR && rc != -EBUSY)
			return false;
		if (n > RETRIES_AT_ONCE)
			nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
	}
	return false;
}

static void op_start(struct ring *r, struct ring_op *op)
{
	struct io_uring_sqe *sqe = r->is_uring ? io_uring_get_sqe(&r->uring) : NULL;
	if (!sqe) {
		op_run(op);
		return;
	}
	if (op->kind == RING_FSYNC)
		io_uring_prep_fsync(sqe, op->fd, 0);
	else
		io_uring_prep_write(sqe, op->fd, op->data + op->n_written, (unsigned)(op->n - op->n_written), op->offset + op->n_written);
	io_uring_sqe_set_data(sqe, op);
	if (ring_enter(r)) {
		r->n_busy++;
		return;
	}
	ring_give_up(r);
	op_run(op);
}

void ring_submit(struct ring *r, struct ring_op *op)
{
	assert(!op->busy && (op->kind == RING_FSYNC || (op->n > 0 && op->n <= 1u << 30)));
	while (r->is_uring && r->n_busy >= r->n_entries)
		ring_reap(r);
	op->n_written = 0;
	op->result = 0;
	op->n_retries = 0;
	op->busy = true;
	op_start(r, op);
}

int ring_complete(struct ring *r, struct ring_op *op)
{
	while (op->busy)
		ring_reap(r);
	return op->result;
}
