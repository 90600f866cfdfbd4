// SPDX-License-Identifier: Apache-2.0
// Input, output and errors of programs of ours. Not for the library: a process is its program's.
#pragma once

// Some of descriptors 0 to 2 may be closed (a shell's 2>&-, some service managers). What a program opens first would get their numbers, and
// so what is printed: a connection, or a file that is kept. This puts /dev/null there, the wrong way round: reading and printing fail
// (EBADF) as on what is closed. And a line on stderr becomes one write: a program that runs beside may be writing there too. First in
// main(), before anything is opened. 0 or -errno.
int streams_init(void);
