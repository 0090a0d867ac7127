"""What samples of a worker's stacks count for."""

from benchmarks.profiler import compute_phase_shares

STACKS = """\
thread (1): TrainingThread;Trainer.fit (a.py:1);DreamBoothModule.training_step (b.py:1) 10
thread (1): TrainingThread;Trainer.fit (a.py:1);DreamBoothModule.training_step (b.py:1);\
UNet2DConditionModel.forward (c.py:1) 30
thread (1): TrainingThread;Trainer.fit (a.py:1);DreamBoothModule.training_step (b.py:1);\
StepForwards._find_text_function.<locals>.encode_tokens (f.py:1) 100
thread (1): TrainingThread;Trainer.fit (a.py:1);_engine_run_backward (d.py:1) 40
thread (1): TrainingThread;Trainer.fit (a.py:1) 20
thread (1): TrainingThread;Trainer.fit (a.py:1);\
StepGate.on_train_batch_start (step_gate.py:38);get (e.py:1) 90
thread (2): Other;DreamBoothModule.training_step (b.py:1) 50
"""


def test_counts_the_training_thread_but_not_its_waits_for_a_turn() -> None:
    assert compute_phase_shares(STACKS) == {
        "text encoder, forward": 0.5,
        "backward": 0.2,
        "denoiser, forward": 0.15,
        "Lightning and the rest": 0.1,
        "rest of the training step": 0.05,
    }
