// SPDX-License-Identifier: Apache-2.0
// How programs of ours use malloc. Not for the library: a process is its program's.
#pragma once

// Buffers of some 100 kB come and go with every answer. By default malloc gives each back to the system at once and the next one is
// faulted in page by page: half of the processor time of an answer from the store. This lets it keep up to HEAP_KEPT of free memory for
// each of its arenas; larger blocks still go back.
#define HEAP_KEPT (16 << 20)
void heap_init(void);
