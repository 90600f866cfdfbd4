// SPDX-License-Identifier: Apache-2.0
#include "kernels/fault.h"

#include <string.h>

#define LOOK "look for NVRM Xid in the kernel's log"

static const struct { const char *name, *field, *hint; } faults[N_DEVICE_FAULTS] = {
	[DEVICE_FAULT_NONE] = {"", "", ""},
	[DEVICE_FAULT_RESTART] = {"restart", "gpu_fault.restart", "a new process may find the GPU whole; if this comes again, " LOOK},
	[DEVICE_FAULT_RESET] = {"reset", "gpu_fault.reset",
				"the GPU must be reset (nvidia-smi --gpu-reset, or a reboot) before it is used again; " LOOK},
	[DEVICE_FAULT_SUPPORT] = {"support", "gpu_fault.support", "the GPU or its driver failed in a way that has no name: " LOOK
				  " (79: it fell off the bus); where a restart does not help, its vendor may"},
};

const char *device_fault_name(enum device_fault fault)
{
	return faults[fault].name;
}

const char *device_fault_hint(enum device_fault fault)
{
	return faults[fault].hint;
}

const char *device_fault_field(enum device_fault fault)
{
	return faults[fault].field;
}

enum device_fault device_fault_of(const char *field)
{
	enum device_fault f = N_DEVICE_FAULTS - 1;
	while (f > DEVICE_FAULT_NONE && strcmp(faults[f].field, field) != 0)
		f--;
	return f;
}
