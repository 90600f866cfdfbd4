// SPDX-License-Identifier: Apache-2.0
// A tokenizer of a few letters, for targets that need one: "a" 0, "b" 1, "ab" 2, " " 3, "<x>" 4 (special).
#pragma once

#include "daemon/model/tokenizer.h"

#define LETTERS_VOCABULARY 5

const struct tokenizer *letters(void);       // made once, never freed
