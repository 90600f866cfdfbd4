// SPDX-License-Identifier: Apache-2.0
// kdctl without its main.c and without a server: what it would say is only counted.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "clients/kdctl/kdctl.h"

extern unsigned quiet_n_failures;            // since it was set to 0

void quiet_stdout(void);                     // what is printed goes nowhere, from now on
// The next part of an input that NULs divide, and what stands behind it; the last one reaches to the end.
size_t quiet_part(const uint8_t **at, const uint8_t *end);
