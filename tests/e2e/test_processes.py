# SPDX-License-Identifier: Apache-2.0
"""One student trained by several processes (Open MPI): the same run as by one, resumed by any number, ended in order."""
import os
import shutil
import signal
import subprocess
import sys
import unittest

import kdserved
import test_training as training

# In containers and as root; more processes than processors; a leak checker would report MPI's own.
ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_hwloc_base_binding_policy="none", OMPI_MCA_btl_vader_single_copy_mechanism="none",
                   OMPI_MCA_plm_rsh_agent="sh", OMP_WAIT_POLICY="passive", ASAN_OPTIONS="detect_leaks=0")


def built_with_mpi():
    with open(os.path.join(kdserved.BUILD, "config.h")) as f:
        return "#define HAVE_MPI 1" in f.read()


class Processes(unittest.TestCase):
    def start(self, daemon, n, output, text, *arguments, environment=None):
        config = output + ".conf"
        with open(config, "w") as f:
            f.write(text)
        return subprocess.Popen(["mpirun", "-n", str(n), training.WORKER, "--config", config, "--output", output,
                                 "--server", "unix:" + daemon.socket_path, *arguments],
                                stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=dict(ENVIRONMENT, **(environment or {})))

    def finish(self, process, expect=0):
        _, said = process.communicate(timeout=2 * kdserved.PATIENCE)
        self.assertNotIn("Sanitizer", said)
        if expect is None:
            self.assertNotEqual(process.returncode, 0, said)
        else:
            self.assertEqual(process.returncode, expect, said)
        return said

    def close(self, one, other, places=5):
        """Losses within rounding; what is counted or follows from the step alone is equal."""
        self.assertEqual(sorted(one), sorted(other))
        for step in one:
            self.assertEqual(set(one[step]), set(other[step]))
            self.assertEqual(one[step]["learning_rate"], other[step]["learning_rate"])
            for key in one[step]:
                self.assertAlmostEqual(one[step][key], other[step][key], places, "%s of step %d" % (key, step))

    def test_a_run_of_several_processes_is_the_run_of_one(self):
        """Micro-batches that divide among them, that do not, and fewer than processes; adaptive schedules and an average beside."""
        with kdserved.Daemon() as daemon:
            for accumulate in (4, 3, 1):
                text = training.settings(daemon.directory, accumulate=accumulate, steps=16, micro_batch=2, average=0.9, export="best",
                                         loss=training.LOSSES + ["taid top-k=8 rate=0.01"])
                runs = []
                for n in (1, 2, 3):
                    output = os.path.join(daemon.directory, "out-%d-%d" % (accumulate, n))
                    said = self.finish(self.start(daemon, n, output, text))
                    self.assertEqual("%d processes train together" % n in said, n > 1, said)
                    self.assertEqual("does not divide" in said, accumulate % n > 0, said)
                    self.assertEqual(set(os.listdir(os.path.join(output, "student"))), training.FILES)
                    runs.append(training.metrics(output))
                self.assertEqual(sorted(runs[0]), list(range(1, 17)))
                self.assertLess(runs[0][16]["held_out_kl"], 0.95 * runs[0][1]["held_out_kl"])
                self.close(runs[0], runs[1])
                self.close(runs[0], runs[2])

    def test_documents_in_places_and_text_of_the_student_are_shared_out_too(self):
        with kdserved.Daemon() as daemon:
            own = {"rollout_prompt": 8, "rollout_tokens": 16}
            for more in ({"packing": "bfd"}, {"rollouts": 0.5, **own}, {"rollout_replay": 9, "rollout_fresh": 0.3, "rollouts": 0.9, **own}):
                text = training.settings(daemon.directory, accumulate=3, steps=8, micro_batch=2, learning_rate=0.001, **more)
                outputs = [os.path.join(daemon.directory, "%s-%d" % (next(iter(more)), n)) for n in (1, 2)]
                for n, output in enumerate(outputs, 1):
                    self.finish(self.start(daemon, n, output, text))
                self.close(*map(training.metrics, outputs))

    def test_a_buffer_of_rollouts_is_everyones_and_goes_on_with_another_number(self):
        with kdserved.Daemon() as daemon:
            text = training.settings(daemon.directory, accumulate=4, steps=24, micro_batch=2, learning_rate=0.001, rollouts=0.9, rollout_prompt=8,
                                     rollout_tokens=16, rollout_replay=16, rollout_fresh=0.3)
            whole, parts = os.path.join(daemon.directory, "whole"), os.path.join(daemon.directory, "parts")
            self.finish(self.start(daemon, 1, whole, text))
            process = self.start(daemon, 2, parts, text)
            self.stop_at(process, parts, 8)
            self.finish(process)
            self.assertIn("resumed after step", self.finish(self.start(daemon, 3, parts, text, "--resume")))
            self.close(training.metrics(whole), training.metrics(parts))
            with open(os.path.join(parts, "metrics.jsonl")) as f:
                self.assertIn('"rollouts_replayed":8', f.read())

    def test_the_same_number_of_processes_gives_the_same_bits(self):
        with kdserved.Daemon() as daemon:
            text = training.settings(daemon.directory, accumulate=3, steps=8)
            outputs = [os.path.join(daemon.directory, name) for name in "ab"]
            for output in outputs:
                self.finish(self.start(daemon, 3, output, text))
            self.assertEqual(training.metrics(outputs[0]), training.metrics(outputs[1]))
            for name in training.FILES:
                self.assertEqual(*(training.read(output, "student", name) for output in outputs))

    def test_it_goes_on_with_another_number_of_processes(self):
        with kdserved.Daemon() as daemon:
            text = training.settings(daemon.directory, accumulate=4, steps=24)
            whole, parts = os.path.join(daemon.directory, "whole"), os.path.join(daemon.directory, "parts")
            self.finish(self.start(daemon, 1, whole, text))
            for n, steps in ((2, 6), (3, 12), (1, 18), (4, 24)):
                process = self.start(daemon, n, parts, text, *(["--resume"] if steps > 6 else []))
                if steps < 24:
                    self.stop_at(process, parts, steps)
                said = self.finish(process)
            self.assertIn("resumed after step", said)
            self.close(training.metrics(whole), training.metrics(parts))

    def stop_at(self, process, output, step):
        """SIGUSR1 is passed on by mpirun: all stop after the same step, with a checkpoint."""
        kdserved.wait_until(lambda: process.poll() is not None or self.seen(output) >= step, "step %d" % step)
        process.send_signal(signal.SIGUSR1)

    def seen(self, output):
        try:
            return max(training.metrics(output), default=0)
        except OSError:
            return 0

    def test_a_stop_of_one_process_stops_all_of_them(self):
        with kdserved.Daemon() as daemon:
            output = os.path.join(daemon.directory, "out")
            process = self.start(daemon, 3, output, training.settings(daemon.directory, accumulate=3, steps=100000, checkpoint_every=0))
            kdserved.wait_until(lambda: self.seen(output) >= 2 or process.poll() is not None, "a step")
            os.kill(self.workers(process)[-1], signal.SIGTERM)
            self.assertIn("stopped after step", self.finish(process))
            self.assertEqual(len(os.listdir(os.path.join(output, "checkpoints"))), 1)

    def workers(self, process):
        """Process ids of the workers below this mpirun."""
        with open("/proc/%d/task/%d/children" % (process.pid, process.pid)) as f:
            return sorted(int(word) for word in f.read().split())

    def test_a_process_that_dies_ends_the_others(self):
        with kdserved.Daemon() as daemon:
            output = os.path.join(daemon.directory, "out")
            text = training.settings(daemon.directory, accumulate=3, steps=40)
            process = self.start(daemon, 3, output, text)
            kdserved.wait_until(lambda: self.seen(output) >= 8 or process.poll() is not None, "some steps")
            workers = self.workers(process)
            os.kill(workers[1], signal.SIGKILL)
            self.assertIn("signal 9", self.finish(process, expect=None))
            kdserved.wait_until(lambda: not any(os.path.exists("/proc/%d" % pid) for pid in workers), "all to end")
            self.finish(self.start(daemon, 2, output, text, "--resume"))
            self.assertEqual(self.seen(output), 40)

    def test_a_failure_of_one_is_told_by_all(self):
        """Of all, before they start; of process 0 alone, when it has no place for its checkpoint."""
        with kdserved.Daemon() as daemon:
            output = os.path.join(daemon.directory, "out")
            text = training.settings(daemon.directory, accumulate=3, steps=12, student="/nowhere")
            said = self.finish(self.start(daemon, 3, output, text), expect=None)
            self.assertIn("/nowhere", said)
            text = training.settings(daemon.directory, accumulate=3, steps=12)
            os.mkdir(os.path.join(output, "student"))
            with open(os.path.join(output, "student", "mine"), "w"):
                pass                                   # an export does not remove what is not its own
            said = self.finish(self.start(daemon, 3, output, text), expect=None)
            self.assertIn("process 0: cannot rename", said)

    def test_every_process_keeps_what_it_received(self):
        with kdserved.Daemon() as daemon:
            output, store = os.path.join(daemon.directory, "out"), os.path.join(daemon.directory, "own")
            self.finish(self.start(daemon, 2, output, training.settings(daemon.directory, steps=4, store=store)))
            for directory in (store, store + ".1"):
                self.assertTrue(any(name.endswith(".shard") for name in os.listdir(directory)), directory)
            again = os.path.join(daemon.directory, "again")
            text = training.settings(daemon.directory, steps=4, corpus=None, tokenizer=daemon.model, teacher="shards:%s,%s.1" % (store, store))
            with open(again + ".conf", "w") as f:
                f.write(text)
            offline = subprocess.Popen(["mpirun", "-n", "2", training.WORKER, "--config", again + ".conf", "--output", again],
                                       stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
            self.finish(offline)
            self.assertEqual(self.seen(again), 4)

    def test_srun_without_pmix_is_refused(self):
        with kdserved.Daemon() as daemon:
            output = os.path.join(daemon.directory, "out")
            environment = dict(os.environ, SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="0", SLURM_LOCALID="0")
            environment.pop("PMIX_RANK", None)
            with open(output + ".conf", "w") as f:
                f.write(training.settings(daemon.directory))
            done = subprocess.run([training.WORKER, "--config", output + ".conf", "--output", output, "--server", "unix:" + daemon.socket_path],
                                  capture_output=True, text=True, env=environment)
            self.assertEqual(done.returncode, 1)
            self.assertIn("srun --mpi=pmix", done.stderr)
            self.assertFalse(os.path.exists(output))


if __name__ == "__main__":
    if not shutil.which("mpirun") or not built_with_mpi():
        print("no MPI (mpirun, and a build that found ompi-c: Debian packages openmpi-bin, libopenmpi-dev)")
        sys.exit(77)
    unittest.main()
