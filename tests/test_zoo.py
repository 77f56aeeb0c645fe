"""
The command line and what rl_zoo3 must be taught, as a user meets them: an installed wheel, an empty folder, no
``--conf-file``.

The configuration files themselves are in ``test_zoo_configs.py``, ``compare`` and ``report`` in their own files.
"""

import importlib
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState
from rl_zoo3 import ALGOS
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from stable_baselines3 import SAC

from sb3_pathwise import LikelihoodRatioAC, zoo
from sb3_pathwise.zoo import cli, registry

# One worker of pytest-xdist trains for all of these tests
pytestmark = pytest.mark.xdist_group("zoo")
ROOT = Path(__file__).parents[1]
TRAINED = ("pathwise_ac", "likelihood_ratio_ac", "pathwise_crossq")
TINY = ["-params", "buffer_size:500", "batch_size:16", "learning_starts:50", "policy_kwargs:dict(net_arch=[16])"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of the wheel, in a folder of their own: to be found before the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (archive,) = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder / "site")
    return folder / "site"


def start(script: str, cwd: Path, wheel: Path) -> subprocess.Popen:
    """
    :param script: Python code, for a process of its own
    :param cwd: where to run it
    :param wheel: the unpacked wheel
    :return: the process
    """
    environ = os.environ | {"PYTHONPATH": str(wheel), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    environ.pop("DISPLAY", None)
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, cwd=cwd, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen) -> str:
    """
    :param process: from ``start``
    :return: what it has printed
    """
    try:
        output, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def script_of(*commands: list[str]) -> str:
    """
    :param commands: arguments of ``sb3-pathwise``, each
    :return: a script that runs them one after the other, and stops at the first that fails
    """
    return (
        "import sys\n"
        "from sb3_pathwise.zoo.cli import main\n"
        f"for command in {list(commands)!r}:\n"
        "    print('$', *command, flush=True)\n"
        "    if main(command) != 0:\n"
        "        sys.exit(1)\n"
    )


def train(algo: str, seed: int, *more: str) -> list[str]:
    """:return: arguments that train a tiny model on Pendulum-v1, for two episodes"""
    return ["train", "--algo", algo, "--env", "Pendulum-v1", "-n", "400", "--seed", str(seed), *TINY, *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A folder in which three algorithms have been trained with two seeds each."""
    folder = tmp_path_factory.mktemp("trained")
    evaluated = ["--eval-freq", "200", "--eval-episodes", "2"]
    runs = [train(algo, seed, *evaluated) for algo in TRAINED for seed in (0, 1)]
    output = finish(start(script_of(*runs), folder, wheel))
    assert f"Loading hyperparameters from: {wheel / 'sb3_pathwise' / 'zoo_configs' / 'pathwise_ac.yml'}" in output
    return folder


def test_wheel_has_the_command_and_the_configs(wheel: Path) -> None:
    (entry_points,) = wheel.glob("*.dist-info/entry_points.txt")
    assert "sb3-pathwise = sb3_pathwise.zoo.cli:main" in entry_points.read_text()
    shipped = {path.name: path.read_text() for path in (wheel / "sb3_pathwise" / "zoo_configs").iterdir()}
    assert shipped == {path.name: path.read_text() for path in (ROOT / "zoo_configs").iterdir()}


def test_train_uses_our_config(trained: Path) -> None:
    run = trained / "logs" / "likelihood_ratio_ac" / "Pendulum-v1_1"
    config = dict(yaml.unsafe_load((run / "Pendulum-v1" / "config.yml").read_text()))
    # From the YAML, and from the command line
    assert config["learning_rate"] == 0.001
    assert config["batch_size"] == 16
    model = LikelihoodRatioAC.load(run / "Pendulum-v1.zip")
    assert model.num_timesteps == 400
    assert model.learning_rate == 0.001 or model.lr_schedule(1) == 0.001


def test_enjoy_and_plots_and_video(trained: Path, wheel: Path) -> None:
    played = ["--algo", "pathwise_ac", "--env", "Pendulum-v1"]
    crossq = ["--algo", "pathwise_crossq", "--env", "Pendulum-v1"]
    compared = ["-a", *TRAINED, "-e", "Pendulum-v1", "-f", "logs", "--no-million"]
    commands = [
        ["enjoy", *played, "--no-render", "-n", "200"],
        ["enjoy", *played, "--no-render", "-n", "200", "--load-best", "--exp-id", "1"],
        ["all_plots", *compared, "-o", "results"],
        ["plot_from_file", "-i", "results", "--rliable", "--versus", "--iqm"],
        ["plot_train", "-a", "pathwise_ac", "-e", "Pendulum-v1", "-f", "logs", "-w", "1"],
        ["record_video", *played, "-n", "20"],
        ["enjoy", *crossq, "--no-render", "-n", "200"],
        ["record_video", *crossq, "-n", "20"],
    ]
    output = finish(start(script_of(*commands), trained, wheel))
    assert "Loading logs/pathwise_ac/Pendulum-v1_2/Pendulum-v1.zip" in output
    assert "Loading logs/pathwise_ac/Pendulum-v1_1/best_model.zip" in output
    assert output.count("1 Episodes\nMean reward: -") == 3
    # all_plots shows keys in capitals
    table = [line.strip("|").split("|") for line in output.splitlines() if line.startswith(("|Environments", "|Pendulum-v1"))]
    assert [title.strip() for title in table[0][1:]] == [algo.upper() for algo in TRAINED]
    # All returns are negative, and 0.0 where it has found no run
    assert all(score.strip().startswith("-") for score in table[1][1:])
    # Without a display, figures are files: two learning curves, three of rliable, the sensitivity, the training
    for figure in ("all_plots_results_pendulum-v1", "plot_from_file_sensitivity_plot", "plot_train_training_episodic_reward"):
        assert (trained / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(trained.glob("plot_from_file_[0-9]*.png"))) == 4
    for algo in ("pathwise_ac", "pathwise_crossq"):
        (video,) = (trained / "logs" / algo / "Pendulum-v1_2" / "videos").glob("*.mp4")
        assert video.stat().st_size > 1000


def test_plot_of_one_run_says_what_it_needs(in_process: Path, capsys: pytest.CaptureFixture) -> None:
    # What all_plots makes of a single run, see its squeeze()
    run = {"timesteps": np.arange(2), "mean": np.zeros(2), "std_error": np.zeros(2), "last_evals": np.float64(0)}
    table = {"headers": ["Environments"], "value_matrix": [["Pendulum-v1"]]}
    Path("one.pkl").write_bytes(pickle.dumps({"Pendulum-v1": {"SAC-logs": run}, "results_table": table}))
    assert cli.main(["plot_from_file", "-i", "one", "--rliable", "--skip-timesteps"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sb3-pathwise plot_from_file: error: each algorithm needs two runs")
    assert error.count("\n") == 1


def test_record_training(trained: Path, wheel: Path) -> None:
    """rl_zoo3 records each model in a process of its own, which must know the algorithms too."""
    folder = trained / "without_evaluations"
    folder.mkdir()
    record = ["record_training", "--algo", "pathwise_ac", "--env", "Pendulum-v1", "-n", "20"]
    finish(start(script_of(train("pathwise_ac", 0, "--eval-freq", "-1"), record), folder, wheel))
    video = folder / "logs" / "pathwise_ac" / "Pendulum-v1_1" / "videos" / "training.mp4"
    assert video.stat().st_size > 1000


def open_storage(folder: Path, journal: bool) -> optuna.storages.BaseStorage:
    """:return: the study's storage, as ``--storage study.log`` or ``--storage sqlite:///study.db`` name it"""
    if journal:
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.log")))
    return optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")


@pytest.mark.parametrize(("journal", "algo"), [(True, "likelihood_ratio_ac"), (False, "likelihood_ratio_crossq")])
def test_optimize_then_enjoy_the_best(journal: bool, algo: str, tmp_path: Path, wheel: Path) -> None:
    """Two processes tune one study at a time; then a model is trained as in its first trial, number 0, and plays."""
    optuna.create_study(study_name="s", storage=open_storage(tmp_path, journal), direction="maximize")
    study = ["--storage", "study.log" if journal else "sqlite:///study.db", "--study-name", "s"]
    tune = ["-optimize", "--n-trials", "1", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
    # Seeds whose first trial is cheap
    processes = [
        start(script_of(train(algo, seed, *study, *tune, "--sampler", "random", "--pruner", "none")), tmp_path, wheel)
        for seed in (125, 178)
    ]
    outputs = [finish(process) for process in processes]
    assert any("To train with the best trial, " in output for output in outputs)
    assert not list((tmp_path / "logs" / algo).glob("Pendulum-v1_*")), "an empty run is left, the latest one to enjoy"
    trials = optuna.load_study(study_name="s", storage=open_storage(tmp_path, journal)).trials
    assert [(trial.number, trial.state) for trial in trials] == [(0, TrialState.COMPLETE), (1, TrialState.COMPLETE)]

    again = ["train", "--algo", algo, "--env", "Pendulum-v1", "-n", "200", "--eval-freq", "-1", *study, "--trial-id", "0"]
    play = ["enjoy", "--algo", algo, "--env", "Pendulum-v1", "--no-render", "-n", "200"]
    assert "1 Episodes\nMean reward: -" in finish(start(script_of(again, play), tmp_path, wheel))
    config = dict(yaml.unsafe_load((tmp_path / "logs" / algo / "Pendulum-v1_1" / "Pendulum-v1" / "config.yml").read_text()))
    for name in ("n_action_samples", "baseline", "policy_delay", *(() if algo in registry.CRITIC_OF else ("tau",))):
        assert config[name] == trials[0].params[name]
    model = LikelihoodRatioAC.load(tmp_path / "logs" / algo / "Pendulum-v1_1" / "Pendulum-v1.zip")
    assert model.policy.critic_name == registry.CRITIC_OF.get(algo, "twin")


@pytest.mark.parametrize("left", ["nothing", "the run's folder", "all"])
def test_an_empty_run_that_another_process_removes(left: str, tmp_path: Path) -> None:
    """Two processes that tune one study share a folder, and the first to end has removed more or less of it."""
    manager = registry.ExperimentManager.__new__(registry.ExperimentManager)
    manager.save_path, manager.params_path = str(tmp_path / "run"), str(tmp_path / "run" / "Pendulum-v1")
    if left != "nothing":
        Path(manager.params_path if left == "all" else manager.save_path).mkdir(parents=True)
    manager._remove_empty_run()
    assert (tmp_path / "run").exists() == (left == "the run's folder")


FAKE_HUB = """
import os, shutil
from pathlib import Path
import huggingface_hub, httpx2
from huggingface_hub.errors import RemoteEntryNotFoundError

class HfApi:
    def create_repo(self, repo_id, **kwargs):
        Path("remote", repo_id).mkdir(parents=True)
        return repo_id
    def snapshot_download(self, repo_id, local_dir):
        Path(local_dir).mkdir(parents=True)
    def upload_folder(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, Path("remote", repo_id), dirs_exist_ok=True)

def hf_hub_download(repo_id, filename, **kwargs):
    path = Path("remote", repo_id, filename)
    if not path.exists():
        request = httpx2.Request("GET", "https://hub")
        raise RemoteEntryNotFoundError(filename, response=httpx2.Response(404, request=request))
    return str(path)

huggingface_hub.HfApi, huggingface_hub.hf_hub_download = HfApi, hf_hub_download
os.environ["TRUST_REMOTE_CODE"] = "True"
"""


def test_hub_there_and_back(trained: Path, wheel: Path) -> None:
    """With a folder in place of the hub: the card's commands are ours, and the model plays after the way back."""
    model = ["--algo", "likelihood_ratio_ac", "--env", "Pendulum-v1"]
    commands = [
        ["push_to_hub", *model, "-f", "logs", "-orga", "us", "--no-render"],
        ["load_from_hub", *model, "-f", "downloads", "-orga", "us"],
        ["enjoy", *model, "-f", "downloads", "--no-render", "-n", "200"],
    ]
    assert "1 Episodes" in finish(start(FAKE_HUB + script_of(*commands), trained, wheel))
    card = (trained / "remote" / "us" / "likelihood_ratio_ac-Pendulum-v1" / "README.md").read_text()
    metadata = next(yaml.safe_load_all(card))
    assert metadata["model-index"][0]["name"] == "LikelihoodRatioAC"
    assert "python -m sb3_pathwise enjoy --algo likelihood_ratio_ac" in card
    assert "rl_zoo3.enjoy" not in card and "pip install rl_zoo3" not in card


def test_import_leaves_the_zoo_alone(wheel: Path, tmp_path: Path) -> None:
    script = (
        "import sys, gymnasium\n"
        "limit = gymnasium.wrappers.TimeLimit\n"
        "import sb3_pathwise, sb3_pathwise.zoo.cli\n"
        "assert gymnasium.wrappers.TimeLimit is limit\n"
        "print({'rl_zoo3', 'matplotlib', 'pandas', 'seaborn', 'optuna'} & sys.modules.keys(), sb3_pathwise.__file__)\n"
    )
    assert finish(start(script, tmp_path, wheel)).strip() == f"set() {wheel / 'sb3_pathwise' / '__init__.py'}"


def test_module_is_the_command(wheel: Path, tmp_path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": str(wheel)}
    command = [sys.executable, "-m", "sb3_pathwise"]
    shown = subprocess.run([*command, "--help"], cwd=tmp_path, env=environ, text=True, capture_output=True)
    assert shown.returncode == 0
    unknown = subprocess.run([*command, "trian"], cwd=tmp_path, env=environ, text=True, capture_output=True)
    assert unknown.returncode == 2
    assert "Traceback" not in unknown.stderr
    assert unknown.stderr.startswith("sb3-pathwise: error: there is no command 'trian'") and unknown.stderr.count("\n") == 1


def test_help_has_a_line_for_each_command(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    for name, command in cli.COMMANDS.items():
        assert [line.split(maxsplit=1) for line in shown].count([name, command.summary]) == 1
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0


def test_missing_extra_is_one_line(wheel: Path, tmp_path: Path) -> None:
    cases = [("rl_zoo3", "train", "zoo"), ("requests", "enjoy", "zoo"), ("seaborn", "plot_train", "zoo,plots")]
    script = (
        "import sys\n"
        "from sb3_pathwise.zoo.cli import main\n"
        f"for missing, command, extras in {cases}:\n"
        "    sys.modules[missing] = None\n"
        "    assert main([command, '--help']) == 1\n"
        "    del sys.modules[missing]\n"
    )
    lines = finish(start(script, tmp_path, wheel)).splitlines()
    assert len(lines) == len(cases)
    for line, (missing, command, extras) in zip(lines, cases, strict=True):
        assert line.startswith(f"sb3-pathwise {command}: error: {missing} is not installed")
        assert line.endswith(f"pip install 'sb3-pathwise[{extras}]'")


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to call ``cli.main`` in; what it has changed in rl_zoo3 is changed back."""
    monkeypatch.chdir(tmp_path)
    for known in (ALGOS, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER):
        for key in registry.ALGORITHMS:
            monkeypatch.setitem(known, key, known.get(key))
    monkeypatch.setattr(registry.rl_zoo3.train, "ExperimentManager", registry.rl_zoo3.train.ExperimentManager)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "Pendulu-v1"], "maybe meant Pendulum-v1"),
        (["-params", "n_actions:1"], "n_actions"),
        (["-params", "n_action_samples:1"], "n_action_samples"),
        (["-params", "policy_kwargs:dict(distribution='gaussian_mixture')"], "LikelihoodRatioAC"),
        (["-conf", "missing.yml"], "missing.yml"),
        (["-conf", "broken.yml"], "broken.yml is not valid YAML"),
        (["-conf", "incomplete.yml"], "n_timesteps"),
        (["--storage", "sqlite:///none.db", "--study-name", "s", "--trial-id", "0"], "no study s with a trial 0"),
        (["-f", "file/logs"], "file/logs"),
        (["-params", "learning_rate:lin_1e-3"], "a text needs quotes: -params \"learning_rate:'lin_1e-3'\""),
        (["-params", "gamma:0.9", "learning_rate:1e-"], "learning_rate:1e- has no value that Python can read"),
        (["--env-kwargs", "g"], "--env-kwargs: g is not of the form name:value"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str], message: str, in_process: Path, capsys: pytest.CaptureFixture
) -> None:
    Path("broken.yml").write_text("Pendulum-v1: [")
    Path("incomplete.yml").write_text("Pendulum-v1:\n  policy: MlpPolicy\n")
    Path("file").touch()
    assert cli.main(["train", "--algo", "mixed_ac", "--env", "Pendulum-v1", "-n", "200", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sb3-pathwise train: error: ") and message in error
    assert error.count("\n") == 1
    assert not list(in_process.glob("logs/*/*_1"))


def test_a_text_in_quotes_is_taken(in_process: Path) -> None:
    """As the message for one without says."""
    command = ["train", "--algo", "pathwise_ac", "--env", "Pendulum-v1", "-n", "100", "--eval-freq", "-1", *TINY]
    assert cli.main([*command, "learning_rate:'lin_1e-3'"]) == 0
    config = dict(yaml.unsafe_load(Path("logs/pathwise_ac/Pendulum-v1_1/Pendulum-v1/config.yml").read_text()))
    assert config["learning_rate"] == "lin_1e-3"


@pytest.mark.parametrize("command", ["bench", "compare"])
def test_every_argument_of_our_own_has_help(command: str) -> None:
    parser = importlib.import_module(f"sb3_pathwise.experiments.{command}").make_parser()
    assert [action.dest for action in parser._actions if not action.help] == []


def test_unknown_algorithm_is_argparse_s(in_process: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", "--algo", "pathwise"])
    assert exit_.value.code == 2
    assert "invalid choice: 'pathwise'" in capsys.readouterr().err


class Broken(gym.Env):
    """An environment that fails at its 30th step."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    n_steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.n_steps += 1
        if self.n_steps == 30:
            raise ValueError("the robot fell over")
        return np.zeros(1, np.float32), 0.0, False, False, {}


def test_error_while_learning_keeps_its_traceback(in_process: Path) -> None:
    gym.register("Broken-v0", entry_point=Broken, disable_env_checker=True)
    with pytest.raises(ValueError, match="the robot fell over"):
        cli.main(["train", "--algo", "pathwise_ac", "--env", "Broken-v0", "-n", "100", "--eval-freq", "-1", *TINY])


@pytest.mark.parametrize("algo", registry.ALGORITHMS)
def test_search_space(algo: str, in_process: Path) -> None:
    """What is sampled can be built, and the converter makes the same of a finished trial's parameters."""
    zoo.register()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    additional_args = {"using_her_replay_buffer": False, "her_kwargs": {}}
    sampled = []
    for _ in range(20):
        trial = study.ask()
        hyperparams = HYPERPARAMS_SAMPLER[algo](trial, 1, 1, additional_args)
        assert HYPERPARAMS_CONVERTER[algo](trial.params) == hyperparams
        model = registry.ALGORITHMS[algo]("MlpPolicy", "Pendulum-v1", buffer_size=10, **hyperparams)
        assert model.policy.critic_name == registry.CRITIC_OF.get(algo, "twin")
        sampled.append(hyperparams | hyperparams["policy_kwargs"])
    critics_own = {"quantile": ("n_quantiles", "top_quantiles_to_drop_per_net"), "batch_renorm": ("optimizer_kwargs",)}
    for name in (*registry.ALGORITHMS[algo].route_arguments(), *critics_own.get(registry.CRITIC_OF.get(algo, ""), ())):
        assert len({str(hyperparams[name]) for hyperparams in sampled}) > 1


@pytest.mark.parametrize("algo", registry.CRITIC_OF)
def test_policy_kwargs_leave_a_key_its_critic(algo: str, in_process: Path, capsys: pytest.CaptureFixture) -> None:
    command = train(algo, 0, "--eval-freq", "-1")
    assert "policy_kwargs:dict(net_arch=[16])" in command
    assert cli.main(command) == 0
    model = registry.ALGORITHMS[algo].load(f"logs/{algo}/Pendulum-v1_1/Pendulum-v1.zip")
    assert (model.policy.critic_name, model.policy.net_arch) == (registry.CRITIC_OF[algo], [16])
    assert model._n_updates > 0
    capsys.readouterr()
    assert cli.main(["train", "--algo", algo, "--env", "Pendulum-v1", "-params", "policy_kwargs:dict(critic='twin')"]) == 1
    error = capsys.readouterr().err
    assert f"{algo} has critic={registry.CRITIC_OF[algo]!r}, not 'twin'" in error and error.count("\n") == 1


def test_other_keys_take_any_critic(in_process: Path) -> None:
    for algo in registry.ALGORITHMS.keys() - registry.CRITIC_OF.keys():
        assert registry.with_critic(algo, {}) == {}
        hyperparams = {"policy_kwargs": {"critic": "quantile"}}
        assert registry.with_critic(algo, hyperparams) == hyperparams
    assert registry.with_critic("sac", {}) == {}


def test_players_need_no_replay_buffer(in_process: Path) -> None:
    """A loaded model keeps everything but the buffer, the arguments of its own route included."""
    model = LikelihoodRatioAC("MlpPolicy", "Pendulum-v1", buffer_size=1000, n_action_samples=3, baseline="mean_action")
    model.save("model")
    zoo.register(replay_buffer=False)
    player = ALGOS["likelihood_ratio_ac"].load("model")
    assert player.replay_buffer.observations.shape[0] == 1
    assert (player.n_action_samples, player.baseline) == (3, "mean_action")
    observation = model.observation_space.sample()
    assert np.array_equal(
        player.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    zoo.register()
    assert ALGOS["likelihood_ratio_ac"] is LikelihoodRatioAC
    assert ALGOS["sac"] is SAC


def test_config_path() -> None:
    for algo in registry.ALGORITHMS:
        # all_plots looks for the folder of the key in lower case
        assert algo == algo.lower()
        assert registry.config_path(algo) == ROOT / "zoo_configs" / f"{algo}.yml"
    with pytest.raises(KeyError, match="pathwise_ac"):
        registry.config_path("sac")
