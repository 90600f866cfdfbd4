// SPDX-License-Identifier: Apache-2.0
// Private to settings*.c.
#pragma once

#include "daemon/train/settings.h"

int settings_check_rollouts(const struct run_settings *s, struct error *err);          // settings_check's part
