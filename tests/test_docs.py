"""
What README and documentation say is so: their code runs, their commands are commands, and every error has its remedy.

Tables of results and arguments are in ``test_readme.py``, the examples in ``test_examples.py``, docstrings in
``test_docstrings.py``.
"""

import ast
import contextlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from rl_zoo3 import ALGOS
from stable_baselines3.common import evaluation
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_pathwise.critics import Critic
from sb3_pathwise.experiments.compare import comparison_of, make_parser
from sb3_pathwise.guards import causes, finite, scale, traps
from sb3_pathwise.zoo import cli
from sb3_pathwise.zoo.registry import ALGORITHMS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def blocks(page: Path, language: str) -> list[str]:
    """
    :param page: Markdown
    :param language: Of code
    :return: its blocks of code in that language
    """
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_languages_of_code() -> None:
    """Blocks are Python or shell commands, which the tests below run, or no code: nothing hides under another name."""
    languages = Counter(re.findall(r"^```([^\n]+)$", "\n".join(page.read_text() for page in PAGES), flags=re.MULTILINE))
    known = {"python", "bash", "bibtex", "{eval-rst}"}
    directives = {language for language in languages if language.startswith(("{include}", "{literalinclude}", "{toctree}"))}
    assert languages.keys() - directives <= known
    assert languages["python"] > 15 and languages["bash"] > 15


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Trainings take a few dozen steps, an update among them, evaluations one episode, and files land in a folder."""
    learn, evaluate = OffPolicyAlgorithm.learn, evaluation.evaluate_policy

    def learn_little(self: Any, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        # Exact checkpoints are taken between the episodes of Pendulum, which have 200 steps
        self.learning_starts, self.batch_size = min(self.learning_starts, 210), min(self.batch_size, 32)
        return learn(self, min(total_timesteps, 215), *args, **kwargs)

    monkeypatch.setattr(OffPolicyAlgorithm, "learn", learn_little)
    once = {"n_eval_episodes": 1}
    monkeypatch.setattr(evaluation, "evaluate_policy", lambda *args, **kwargs: evaluate(*args, **kwargs | once))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    before = set(ALGOS)
    yield tmp_path
    # What a page registers of its own is gone afterwards
    for algo in ALGOS.keys() - before - ALGORITHMS.keys():
        del ALGOS[algo]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python(page: Path, short: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """The blocks of a page, one after the other, as a reader would run them; what a comment says is printed, is."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    with caplog.at_level("INFO", "sb3_pathwise.engines"):
        for code in blocks(page, "python"):
            exec(compile(code, name(page), "exec"), scope)
    printed = capsys.readouterr().out + "\n".join(caplog.messages)
    code = "".join(blocks(page, "python"))
    for value in re.findall(r"^print\([^\n]*\)  # ([A-Za-z]+)$", code, flags=re.MULTILINE):
        assert value in printed
    for message in re.findall(r"^# INFO:[\w.]+:(.*)$", code, flags=re.MULTILINE):
        assert message in printed
    if page.name == "question.md":
        check_score(scope)
    if page.name == "own_route.md":
        assert abs(scope["z"]).max() < 4.5
    if page.name == "README.md":
        assert len(code.splitlines()) <= 10
        assert re.fullmatch(r"PathwiseAC: -\d+ \+/- \d+\nLikelihoodRatioAC: -\d+ \+/- \d+\n", printed)
        # The example that the quickstart shows
        assert code[code.index("for ") :].replace("5_000", "timesteps") in (ROOT / "examples" / "quickstart.py").read_text()


def check_score(scope: dict[str, Any]) -> None:
    mu, sigma = scope["mu"].detach(), scope["log_sigma"].detach().exp()
    eps = (scope["x"].detach() - mu) / sigma
    assert [grad.item() for grad in scope["at_rsample"]] == pytest.approx([0, -1], abs=1e-5)
    assert [grad.item() for grad in scope["score"]] == pytest.approx([(eps / sigma).item(), (eps**2 - 1).item()], rel=1e-4)


def test_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The code for a job that is killed, twice: the second start goes on where the first was saved."""
    monkeypatch.chdir(tmp_path)
    code = blocks(ROOT / "docs" / "guide" / "trainings_that_survive.md", "python")[0]
    code = code.replace("20_000", "450").replace("2_000", "200").replace("seed=0", "seed=0, learning_starts=390")
    code = code.replace("model.learn", "print(model.num_timesteps)\nmodel.learn")
    for begin in ("0", "400"):
        exec(code, {})
        assert capsys.readouterr().out.split() == [begin]


def commands() -> Iterator[tuple[str, list[str]]]:
    """:return: page and words of every shell command in the documentation, in code blocks and in text"""
    for page in PAGES:
        lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        lines += re.findall(r"`((?:sb3-pathwise|make|pip|python) [^`]+)`", text.replace("\n", " "))
        for line in lines:
            words = shlex.split(line, comments=True)
            if words and not any("..." in word or "<" in word for word in words):
                yield name(page), words


def is_environment_variable(word: str) -> bool:
    return re.fullmatch(r"[A-Z]+=\S+", word) is not None


def test_shell_commands_are_known() -> None:
    """Every command is one that is run or looked at below."""
    makefile = (ROOT / "Makefile").read_text()
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))
    for page, words in commands():
        words = [word for word in words if not is_environment_variable(word)]
        match words:
            case ["make", *targets]:
                assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets), (page, words)
            case ["pip", "install", *packages]:
                for package in set(packages) - {"-c", "constraints.txt", "."}:
                    wanted = re.fullmatch(r"\.\[([\w,]+)\]", package)
                    assert wanted and set(wanted[1].split(",")) <= extras, (page, words)
            case ["python", "-m", "pytest", file, *_] | ["python", file, *_] if file.endswith(".py"):
                assert (ROOT / file).exists(), (page, words)
            case ["python", "-m", "rl_zoo3.train", *_]:
                assert page == "docs/guide/rl_zoo.md"  # Which says that it is refused, and tests/test_zoo.py that it is
            case ["python", "-m", "sb3_pathwise"]:
                pass
            case ["sb3-pathwise", command, *_]:
                assert command in cli.COMMANDS or command == "--help", (page, words)
            case ["dask", "scheduler" | "worker", *_]:
                assert page == "docs/guide/comparisons.md"
            case _:
                raise AssertionError(f"{page}: nobody tests {' '.join(words)}")


def test_comparisons_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [code for code in blocks(ROOT / "docs" / "guide" / "own_route.md", "python") if "ALGOS" in code]
    (tmp_path / "my_algorithms.py").write_text(code)
    for folder in (tmp_path, ROOT / "examples"):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(ALGOS, "antithetic_ac", None)
    compared = [words[2:] for _, words in commands() if words[:2] == ["sb3-pathwise", "compare"] and "--algos" in words]
    assert len(compared) > 5
    for arguments in compared:
        comparison = comparison_of(make_parser().parse_args(arguments))
        comparison.check(for_report="--no-report" not in arguments)
        assert len(comparison.plan()) == len(comparison.algos) * len(comparison.envs) * comparison.n_seeds


@pytest.mark.xdist_group("zoo")
def test_zoo_commands(tmp_path: Path) -> None:
    """The commands of the page on RL Zoo, in its order, with fewer steps: one process, as they take long to start."""
    shorter = {
        "train": ["-n", "300", "--eval-freq", "150", "--eval-episodes", "2", "-params", "policy_kwargs:dict(net_arch=[8])"],
        "enjoy": ["-n", "20", "--no-render"],
        "record_video": ["-n", "20"],
    }
    lines = "\n".join(blocks(ROOT / "docs" / "guide" / "rl_zoo.md", "bash")).splitlines()
    documented = [shlex.split(line)[1:] for line in lines if line.startswith("sb3-pathwise")]
    assert [words[0] for words in documented].count("train") == 4
    run = []
    for words in documented:
        if "--gym-packages" in words:
            continue  # They need what the extra "robots" installs
        if "-optimize" in words:
            run.append([*words, "-n", "110", "--n-trials", "1", "--n-startup-trials", "0", "--n-evaluations", "1"])
        elif words[0] in ("all_plots", "plot_from_file"):
            # Of two models of each
            run += [
                ["train", "--algo", algo, "--env", "Pendulum-v1", "--seed", str(seed), *shorter["train"]]
                for algo in ("pathwise_ac", "likelihood_ratio_ac")
                for seed in (1, 2)
                if words[0] == "all_plots"
            ]
            run.append(words)
        else:
            run.append([*words, *shorter[words[0]]])
    script = f"import sys\nfrom sb3_pathwise.zoo.cli import main\nfor words in {run!r}:\n    assert main(words) == 0, words\n"
    environ = os.environ | {"MPLBACKEND": "agg", "SDL_VIDEODRIVER": "dummy", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environ)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "logs" / "likelihood_ratio_ac").is_dir() and (tmp_path / "evaluations.pkl").exists()


def test_own_critic_in_the_table_of_methods() -> None:
    shown = set(re.findall(r"^\| `(\w+)[`(]", (ROOT / "docs" / "guide" / "own_critic.md").read_text(), flags=re.MULTILINE))
    assert shown == {member for member in vars(Critic) if not member.startswith("_")}


# --- Errors ---


def skeleton(node: ast.AST | None) -> str | None:
    """:return: the text of a message, with an ellipsis for what is filled in; ``None`` if it is no text"""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]
    return None


# Text of another's message, what is raised only to be caught, and what is shown by other messages
INTERNAL = {
    "its beginning or its end is missing",
    "it is compressed",
    "it is of other parameters",
    "nested too deeply",
    "… of parameter … has the wrong shape",
    "… belongs to the process, it is not state",
    "draws more than one action per state",
    "needs the density of the policy",
    "…: format …, this version reads …",
    "…: … is not what was written",
    "…: …",
    "At step …, after … updates: …",
    "…: … ……",
}
# What the text of a class is made of, of which others are made up
MADE_ELSEWHERE = {"NonFiniteError", "MissingFile"}


def messages() -> dict[str, str]:
    """:return: of every message that the package raises or warns with, what is written of it, and where"""
    found = {}
    for path in sorted((ROOT / "sb3_pathwise").rglob("*.py")):
        if {"experiments", "kernels"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_raised = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
            call = node.exc if is_raised else node  # type: ignore[union-attr]
            if not isinstance(call, ast.Call) or not call.args:
                continue
            function = ast.unparse(call.func)
            is_error_made = function == "ValueError"
            is_warning = function in ("warnings.warn", "_log.warning")
            text = skeleton(call.args[0])
            if not (is_raised or is_warning or is_error_made) or text is None or function in MADE_ELSEWHERE:
                continue
            found[text] = f"{path.relative_to(ROOT)}:{call.lineno}"
    return {text: place for text, place in found.items() if text not in INTERNAL}


def pattern(text: str) -> str:
    return re.escape(text).replace("…", ".*")


def test_every_error_has_its_remedy() -> None:
    page = (ROOT / "docs" / "guide" / "when_something_is_wrong.md").read_text()
    # What stands in the first column, in as many code spans as there are messages
    shown = [span for row in re.findall(r"^\| (.*?) \| ", page, flags=re.MULTILINE) for span in re.findall(r"`([^`]+)`", row)]
    found = messages()
    assert len(found) > 80
    unexplained = {text: place for text, place in found.items() if not any(re.match(pattern(span), text) for span in shown)}
    assert not unexplained


def test_no_remedy_is_stale() -> None:
    """Every message of the page is in the source, word for word, as far as it is text."""
    page = (ROOT / "docs" / "guide" / "when_something_is_wrong.md").read_text()
    rows = re.findall(r"^\| (.*?) \| ", page, flags=re.MULTILINE)
    source = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in (ROOT / "sb3_pathwise").rglob("*.py")))
    shown = [span for row in rows for span in re.findall(r"`([^`]+)`", row)]
    assert len(shown) > 100
    stale = [span for span in shown for part in re.split("…", span) if part.strip(" :()") and part.strip() not in source]
    assert not stale


def test_every_trap_and_quantity_is_listed() -> None:
    page = (ROOT / "docs" / "guide" / "when_something_is_wrong.md").read_text()
    for quantity in {*finite.CAUSES, *causes._QUANTITIES.values()}:
        assert f"`{quantity}`" in page
    yielded = [
        texts
        for module in (traps, scale)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple)
        # A name and what is found
        if (texts := [text for text in map(skeleton, node.value.elts) if text is not None and len(text) > 30])
    ]
    assert len(yielded) >= 7
    shown = re.findall(r"`([^`\n]+)`", page)
    for found, *_ in yielded:
        assert any(re.match(pattern(span), found) for span in shown), found


# --- Prose ---


def sentences(text: str) -> list[str]:
    """:return: sentences of at least eight words of Markdown, as far as they are prose"""
    text = re.sub(r"^```.*?^```$|!\[[^\]]*\]|^#[^\n]*$|^\|[-| ]+\|$", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    parts = re.split(r"(?<=[.:?!])\s|\n\s*\n|\s\|\s|\n- ", text)
    normal = [" ".join(re.findall(r"[a-z0-9]+", re.sub(r"\]\([^)]*\)", "]", part).lower())) for part in parts]
    return [sentence for sentence in normal if len(sentence.split()) >= 8]


def prose() -> dict[str, str]:
    pages = {name(page): page.read_text() for page in PAGES}
    for notebook in NOTEBOOKS:
        cells = nbformat.read(notebook, 4).cells
        pages[name(notebook)] = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return pages


def test_no_sentence_is_in_two_places() -> None:
    places: dict[str, list[str]] = {}
    for page, text in prose().items():
        for sentence in sentences(text):
            places.setdefault(sentence, []).append(page)
    for path in [*(ROOT / "sb3_pathwise").rglob("*.py"), *(ROOT / "examples").glob("*.py")]:
        nodes = ast.walk(ast.parse(path.read_text()))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        for docstring in (ast.get_docstring(node) for node in nodes if isinstance(node, kinds)):
            # Among themselves, docstrings may agree
            for sentence in set(sentences(docstring or "")):
                if sentence in places:
                    places[sentence].append(f"{path.name}, docstring")
    assert len(places) > 200
    assert not {sentence: pages for sentence, pages in places.items() if len(pages) > 1}


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# --- Notebooks ---


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_notebooks(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run from top to bottom, what is committed was run so too, and what they claim is so."""
    book = nbformat.read(notebook, 4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error"]
    assert notebook.stat().st_size < 500_000
    book.cells.append(nbformat.v4.new_code_cell(CLAIMS[notebook.stem]))
    monkeypatch.setenv("TIMESTEPS", "600")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    with contextlib.redirect_stderr(io.StringIO()):
        NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()


CLAIMS = {
    "why_reparameterise": """
assert abs(trap[0]) < 1e-3 and trap[1] < -1
# 20,000 estimates: the standard error of a variance is 1 % for a Gaussian; 10 % leaves room for long tails
for _, theory, measurements in curves:
    for x, variances in measurements.items():
        assert all(abs(variances[route] / theory(x)[route] - 1) < 0.1 for route in ROUTES), (x, variances, theory(x))
(_, by_sigma, _), (_, by_d, _), (_, by_roughness, _) = curves
first, second, third = ROUTES
assert all(v[first] < v[second] < v[third] for v in (by_sigma(0.5), by_sigma(0.1), by_d(17)))
assert by_roughness(0.3)[first] < by_roughness(0.3)[second]
assert by_roughness(3.0)[first] > 5 * by_roughness(3.0)[second]
assert Path("figures/why_reparameterise.png").stat().st_size > 10_000
""",
    "swap_route_and_critic": """
assert list(curves) == list(COLOURS) and all(steps[-1] == TIMESTEPS for steps, _ in curves.values())
assert probe.history and all(measured["gradient/likelihood_ratio/variance"] > 0 for measured in probe.history)
assert second.num_timesteps == first.num_timesteps + TIMESTEPS // 10 and second._n_updates > first._n_updates
""",
}
