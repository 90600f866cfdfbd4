// SPDX-License-Identifier: Apache-2.0
// An allocator that runs out on command, for any program, by LD_PRELOAD. KD_MALLOC_FAULT names a file of 40 bytes that the tester maps too
// (struct control): it arms the n-th allocation from then on, and sees whether it came to that and how many blocks are held.
// Its one complication: libraries that abort without memory by design (OpenMP, C++ and what is written in it, CUDA, the loader) are spared,
// by the address that calls; they allocate per thread or at start, not per question.
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_SPARED 64

struct control {
	_Atomic uint64_t first;        // of the allocations seen, the first that fails; 0 = none does, and none is counted
	_Atomic uint64_t span;         // how many fail in a row; 0 is as 1
	_Atomic uint64_t n_seen;       // since `first` was set and this put to 0, by the tester
	_Atomic int64_t n_blocks;      // held now
	_Atomic int64_t n_bytes;       // of them
};

struct range { uintptr_t begin, end; };

static struct control no_control, *control = &no_control;
static struct range spared[MAX_SPARED];
static int n_spared;
static bool traced;                    // KD_MALLOC_TRACE: each failure says where

// glibc's own names: dlsym may allocate, so it cannot be asked for them from here. Under a sanitizer its own interposer must be kept,
// so there the tests that use this are skipped.
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t alignment, size_t n);
extern void __libc_free(void *p);

void *memalign(size_t alignment, size_t n);
int posix_memalign(void **ret, size_t alignment, size_t n);
void *aligned_alloc(size_t alignment, size_t n);

static bool is_spared_name(const char *path)
{
	static const char *const names[] = {
		"libgomp", "libstdc++", "libdnnl", "libmpi", "libopen-", "libpmix", "libhwloc", "libcu", "libnccl", "ld-linux"};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (strstr(path, names[i]))
			return true;
	return false;
}

static int note_library(struct dl_phdr_info *info, size_t size, void *arg)
{
	(void)size;
	(void)arg;
	if (!is_spared_name(info->dlpi_name))
		return 0;
	for (int i = 0; i < info->dlpi_phnum && n_spared < MAX_SPARED; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		if (p->p_type == PT_LOAD && p->p_flags & PF_X)
			spared[n_spared++] = (struct range){info->dlpi_addr + p->p_vaddr, info->dlpi_addr + p->p_vaddr + p->p_memsz};
	}
	return 0;
}

// Where it went wrong, for addr2line.
static void tell_place(void)
{
	void *frames[32];
	int n = backtrace(frames, 32);
	backtrace_symbols_fd(frames, n, STDERR_FILENO);
}

static void tell(int number)
{
	tell_place();
	signal(number, SIG_DFL);
	raise(number);
}

__attribute__((constructor)) static void start(void)
{
	void *frame;
	backtrace(&frame, 1);      // loads what it needs now
	traced = getenv("KD_MALLOC_TRACE");
	signal(SIGSEGV, tell);
	signal(SIGABRT, tell);
	const char *path = getenv("KD_MALLOC_FAULT");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	dl_iterate_phdr(note_library, NULL);
	if (fd < 0)
		return;
	void *p = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (p != MAP_FAILED)
		control = p;
}

static bool is_spared(const void *caller)
{
	for (int i = 0; i < n_spared; i++)
		if ((uintptr_t)caller >= spared[i].begin && (uintptr_t)caller < spared[i].end)
			return true;
	return false;
}

static bool must_fail(const void *caller)
{
	uint64_t first = atomic_load(&control->first), span = atomic_load(&control->span);
	if (!first || is_spared(caller))
		return false;
	uint64_t seen = atomic_fetch_add(&control->n_seen, 1) + 1;
	if (seen < first || seen >= first + (span ? span : 1))
		return false;
	if (traced)
		tell_place();
	errno = ENOMEM;
	return true;
}

static void *count(void *p)
{
	if (p) {
		atomic_fetch_add(&control->n_blocks, 1);
		atomic_fetch_add(&control->n_bytes, (int64_t)malloc_usable_size(p));
	}
	return p;
}

static void uncount(void *p)
{
	if (p) {
		atomic_fetch_sub(&control->n_blocks, 1);
		atomic_fetch_sub(&control->n_bytes, (int64_t)malloc_usable_size(p));
	}
}

void *malloc(size_t n)
{
	return must_fail(__builtin_return_address(0)) ? NULL : count(__libc_malloc(n));
}

void *calloc(size_t n, size_t size)
{
	return must_fail(__builtin_return_address(0)) ? NULL : count(__libc_calloc(n, size));
}

void *realloc(void *p, size_t n)
{
	int64_t before = p ? (int64_t)malloc_usable_size(p) : 0;
	if (must_fail(__builtin_return_address(0)))
		return NULL;
	void *q = __libc_realloc(p, n);
	if (!p)
		return count(q);
	if (q)
		atomic_fetch_add(&control->n_bytes, (int64_t)malloc_usable_size(q) - before);
	else if (!n)
		atomic_fetch_sub(&control->n_blocks, 1);
	return q;
}

void *memalign(size_t alignment, size_t n)
{
	return must_fail(__builtin_return_address(0)) ? NULL : count(__libc_memalign(alignment, n));
}

void *aligned_alloc(size_t alignment, size_t n)
{
	return must_fail(__builtin_return_address(0)) ? NULL : count(__libc_memalign(alignment, n));
}

int posix_memalign(void **ret, size_t alignment, size_t n)
{
	void *p = must_fail(__builtin_return_address(0)) ? NULL : count(__libc_memalign(alignment, n));
	if (!p)
		return ENOMEM;
	*ret = p;
	return 0;
}

void free(void *p)
{
	uncount(p);
	__libc_free(p);
}
