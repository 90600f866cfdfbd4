// SPDX-License-Identifier: Apache-2.0
// OpenMP's threads must sleep when they have no work. By default they spin, which is harmless alone; but teacher and student often share
// processors, and then each burns what the other needs (measured: a training run beside its teacher slows several times).
#pragma once

// The OpenMP library reads its settings before main() begins, so this sets them and runs the program anew, once, under its own name; a
// setting of the user's stays. Returns when there is nothing to do (or when the kernel refuses: then threads spin, and that is all).
void idle_init(char **argv);
