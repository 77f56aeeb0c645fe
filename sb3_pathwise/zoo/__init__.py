"""
The algorithms in RL Baselines3 Zoo, and the command ``sb3-pathwise``.

``registry.py`` is what rl_zoo3 is taught, ``hub.py`` what its commands for the Hugging Face hub need, ``cli.py`` the way to
every command. The comparisons that ``sb3-pathwise compare`` makes are in ``experiments``. Importing this package does not
import rl_zoo3: ``register`` does.

What rl_zoo3 2.9 does not do for an algorithm from outside, and who does it:

- The ``--algo`` choices, which are looked at before ``--gym-packages`` are imported, and a search space and a converter for
  ``-optimize`` and ``--trial-id``: ``register``.
- A configuration file without ``--conf-file``: ``register``, through ``registry.ExperimentManager``.
- ``--trial-id 0``, which it takes for no trial, and the empty folder that ``-optimize`` or a mistake leaves, which it takes
  for the latest run when it looks for a model: ``ExperimentManager``.
- A replay buffer of full size for a model that only plays, since it knows the off-policy algorithms by name:
  ``register(replay_buffer=False)``.
- ``push_to_hub`` and ``load_from_hub`` with the libraries that it can be installed with: ``hub.mended_hub``.
- Scores of MuJoCo tasks and of Pendulum-v1 enter ``plot_from_file --rliable`` as they are, with a warning: nobody's
  reference scores are shipped with rl_zoo3. ``sb3-pathwise report`` has references for five MuJoCo tasks, or yours.
- ``-optimize`` replaces the ``policy_kwargs`` of the configuration file by those that it samples, as for SAC, and ``-params``
  by those of the command line: a policy's distribution cannot be held fixed by the file. The critic that a key names stays:
  ``registry.with_critic``. A model to go on with (``-i``) or to play has the critic that it was trained with.
- ``rl_zoo3.benchmark`` is not supported: it starts scripts that an installed rl_zoo3 does not have.
"""


def register(replay_buffer: bool = True) -> None:
    """
    Make our algorithms known to rl_zoo3, under all their keys, in this process: call it before rl_zoo3 parses its arguments.

    A script of your own is then as short as::

        from rl_zoo3.train import train
        from sb3_pathwise.zoo import register

        register()
        train()

    :param replay_buffer: whether a loaded model gets a replay buffer of the size that it was trained with; ``False``: one
        transition, enough for a model that only plays
    """
    from sb3_pathwise.zoo import registry

    registry.register(replay_buffer)
