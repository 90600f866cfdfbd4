// SPDX-License-Identifier: Apache-2.0
// A file layer that remembers what a program did to the files of one directory, and makes from it what a power cut may have left: what was
// synchronised is there, of the rest any part, in any order, torn at 512 bytes. io_uring is refused, so that every write passes here; the
// store then makes the same writes one by one.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Starts afresh with this (empty) directory. `seed` also decides random bytes and faults, so that a run repeats.
void recorder_start(const char *directory, uint64_t seed);
void recorder_stop(void);                    // files are no longer watched; images can be made
void recorder_done(void);                    // forgets everything

// Of a hundred operations of its kind, so many fail. A failed fsync leaves the writes before it in doubt for good: a later success says
// nothing of them.
void recorder_faults(unsigned fsync_percent, unsigned write_percent, unsigned short_percent);

// While held, writes and fsyncs of shards wait: what is appended meanwhile is taken as one batch.
void recorder_hold(bool held);
bool recorder_waiting(void);                 // some thread waits for that

void recorder_mark(uint64_t acknowledged);   // goes into the log: from here on record `acknowledged` is owed
size_t recorder_length(void);                // operations in the log

// Makes the state after a power cut at position `at` of the log, in an existing empty directory. Which of many: by seed.
void recorder_image(size_t at, uint64_t seed, const char *directory);
// The marks before position `at`, calling back for each.
void recorder_marks(size_t at, void (*each)(void *arg, uint64_t acknowledged), void *arg);
