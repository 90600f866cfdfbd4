// SPDX-License-Identifier: Apache-2.0
// A student whose vocabulary is not the teacher's: what its tokenizer is, how it reads the run's sequences, how long they become.
#pragma once

struct error;
struct trainer;

// Once the corpus is open and before the student is: fills student_tokenizer and bridge where the settings ask for them, and what is known
// of the student's vocabulary and longest sequence in any case.
int lexicon_prepare(struct trainer *t, struct error *err);
void lexicon_done(struct trainer *t);
