# SPDX-License-Identifier: Apache-2.0
"""Distils a Hugging Face student from a remote kdserved with transformers' own Trainer.

    python distil_trainer.py --server unix:/run/kdserved/kdserved.sock --student DIR --text FILE --out DIR

The student must have the teacher's vocabulary. The collator asks for the teacher's rows of a batch when the Trainer fetches it, which
is one batch ahead of training: the answer travels while the student trains.
"""
import argparse

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from kdclient import Reconnect, Teacher, stack


def ghost_kl(student_logits, ids, teacher_logits, lse, ok, temperature=1.0):
    """Mean over rows of T^2 KL(teacher; student) in which everything outside the teacher's top-k is one more symbol, the "ghost bucket".

    student_logits (B, L, V): complete rows, through which the gradient flows; ids, teacher_logits (B, L, K): the top-k, raw logits; lse
    (B, L): of the teacher's whole row at this temperature; ok (B, L): rows that count.
    """
    log_q = torch.log_softmax(student_logits.float() / temperature, dim=-1).gather(-1, ids.clamp(min=0))
    log_p = teacher_logits / temperature - lse.unsqueeze(-1)
    there = ids >= 0
    p = torch.where(there, log_p.exp(), 0.0)
    head = (p * torch.where(there, log_p - log_q, 0.0)).sum(-1)
    p_tail = 1 - p.sum(-1)
    q_tail = 1 - torch.where(there, log_q.exp(), 0.0).sum(-1)
    log_tail = torch.log(p_tail.clamp(min=1e-7)) - torch.log(q_tail.clamp(min=1e-7))
    tail = torch.where(p_tail > 1e-7, p_tail * log_tail, 0.0)    # a smaller rest is noise
    return temperature ** 2 * ((head + tail) * ok).sum() / ok.sum().clamp(min=1)


class DistillationTrainer(Trainer):
    def __init__(self, *args, temperature=1.0, **more):
        super().__init__(*args, **more)
        self.temperature = temperature

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rows = {name: torch.from_numpy(array) for name, array in stack(inputs["teacher"].result()).items()}
        rows = {name: tensor.to(inputs["input_ids"].device) for name, tensor in rows.items()}
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        loss = ghost_kl(outputs.logits, rows["ids"], rows["logits"], rows["lse"][..., 0], rows["ok"], self.temperature)
        return (loss, outputs) if return_outputs else loss


def collator(teacher, top_k, temperature):
    def collate(examples):
        longest = max(len(e["tokens"]) for e in examples)
        input_ids = torch.zeros(len(examples), longest, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for i, e in enumerate(examples):
            input_ids[i, :len(e["tokens"])], mask[i, :len(e["tokens"])] = torch.tensor(e["tokens"]), 1
        pending = teacher.submit([e["tokens"] for e in examples], top_k=top_k, temperatures=[temperature], values="f16")
        return {"input_ids": input_ids, "attention_mask": mask, "teacher": pending}
    return collate


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("server", "student", "text", "out"):
        parser.add_argument("--" + name, required=True)
    for name, default in (("length", 128), ("batch", 8), ("steps", 100), ("top-k", 64), ("temperature", 1.0), ("learning-rate", 1e-3)):
        parser.add_argument("--" + name, type=type(default), default=default)
    a = parser.parse_args()
    with Teacher.connect(a.server, reconnect=Reconnect()) as teacher, open(a.text, encoding="utf-8") as text:
        tokens = teacher.tokenize(text.read()).tokens.tolist()
        dataset = [{"tokens": tokens[i:i + a.length]} for i in range(0, len(tokens) - 1, a.length)]
        arguments = TrainingArguments(a.out, max_steps=a.steps, per_device_train_batch_size=a.batch, learning_rate=a.learning_rate,
                                      logging_steps=10, save_strategy="no", report_to=[], remove_unused_columns=False)
        trainer = DistillationTrainer(AutoModelForCausalLM.from_pretrained(a.student), arguments, train_dataset=dataset,
                                      temperature=a.temperature, data_collator=collator(teacher, a.top_k, a.temperature))
        trainer.train()
        trainer.save_model(a.out)


if __name__ == "__main__":
    main()
