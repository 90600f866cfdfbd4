// SPDX-License-Identifier: Apache-2.0
// Private to the emulated device.
#pragma once

#include "cuda_runtime.h"

// From now on every call answers e, as a device does whose context is poisoned.
cudaError_t emulate_break(cudaError_t e);
