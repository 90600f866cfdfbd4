// SPDX-License-Identifier: Apache-2.0
// The backends of this build; private to kernels/. An implementation's open() fills device, both numerics and description.
#pragma once

#include "kernels/backend.h"

extern const struct backend_ops backend_ref_ops;
extern const struct backend_ops backend_cpu_ops;
#ifdef HAVE_CUDA
extern const struct backend_ops backend_cuda_ops;
#endif

#include <stdbool.h>
// Whether this build has code for a GPU: only then is the CPU a second choice.
bool backend_has_gpu(void);
