// SPDX-License-Identifier: Apache-2.0
// Private to the emulated device.
#pragma once

#include "cuda_runtime.h"
#include "faults.h"

// From now on every call answers e, as a device does whose context is poisoned.
cudaError_t emulate_break(cudaError_t e);
// Dynamic shared memory that a block may be given.
size_t emulate_shared_bytes();
// Counts one of the kind; true when this is the one that is to fail.
bool emulate_due(emulate_kind kind);
