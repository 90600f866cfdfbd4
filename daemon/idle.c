// SPDX-License-Identifier: Apache-2.0
#include "daemon/idle.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

void idle_init(char **argv)
{
	if (!getenv("OMP_WAIT_POLICY") && setenv("OMP_WAIT_POLICY", "passive", 0) == 0)
		execv("/proc/self/exe", argv);
	// Run from there the kernel calls it "exe", and so do ps, pgrep and the journal's _COMM.
	(void)prctl(PR_SET_NAME, program_invocation_short_name);
}
