// SPDX-License-Identifier: Apache-2.0
// Files from front to back, read ahead: several large reads are under way while what has come is looked at, past the page cache where the
// file system allows, so that going through a whole store costs those who serve from it nothing. Used by one thread at a time.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct error;
struct stream;

int stream_open(struct stream **ret_stream, struct error *err);
struct stream *stream_close(struct stream *s);       // returns NULL; NULL is fine

// Begins with a file of this size, which stays the caller's; its O_DIRECT flag is the stream's until stream_stop, or the next start.
void stream_start(struct stream *s, int fd, uint64_t size);
void stream_stop(struct stream *s);                  // nothing is under way any more: the descriptor may be closed
// n bytes at `offset`, all inside the size, in one piece; until the next call. Going back is possible and slow. What the file turns out not
// to have any more is zeros. 0, -ENOMEM or another -errno.
int stream_view(struct stream *s, uint64_t offset, size_t n, const uint8_t **ret_bytes);
