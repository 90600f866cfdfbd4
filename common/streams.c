// SPDX-License-Identifier: Apache-2.0
#include "common/streams.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int streams_init(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		if (fcntl(fd, F_GETFD) >= 0)
			continue;
		if (open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)    // the lowest that is free is this one
			return -errno;
	}
	setvbuf(stderr, NULL, _IOLBF, 0);
	return 0;
}
