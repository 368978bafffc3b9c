"""Nothing under lmdiff/ can be made to run code that came with data: read from the source."""

import ast
import inspect
from pathlib import Path

import pytest

from lmdiff.denoisers.text_loading import load_text_model, load_tokenizer
from lmdiff.pipelines.text_agents import load_text_agent
from lmdiff.text.config import TextModelConfig
from lmdiff.verbs import Writing

ROOT = Path(__file__).resolve().parent.parent
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_BUILTINS = {"eval", "exec", "compile", "__import__"}


def name_of(node: ast.expr) -> str:
    """Dotted name of what is called: `torch.load`, `eval`; '' for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return ""


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def unsafe(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            modules = []
        found += [f"import {m}" for m in modules if m.split(".")[0] in UNSAFE_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in UNSAFE_BUILTINS or name in {"os.system", "os.popen"}:
            found.append(f"{name}()")
        if name == "torch.load" and not is_constant(keywords.get("weights_only"), True):
            found.append("torch.load() without weights_only=True")
        if name in {"np.load", "numpy.load"} and "allow_pickle" in keywords:
            found.append("np.load(allow_pickle)")
        for keyword in ("shell", "trust_remote_code"):
            if keyword in keywords and not is_constant(keywords[keyword], False):
                found.append(f"{keyword}=")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import dill as d",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "np.load(path, allow_pickle=True)",
        "os.system(text)",
    ],
)
def test_the_check_sees(source):
    assert unsafe(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "re.compile(text)",
        "torch.compile(model)",
        "torch.load(path, weights_only=True)",
        "subprocess.run([program], check=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
    ],
)
def test_the_check_lets_pass(source):
    assert not unsafe(source)


def test_lmdiff_is_safe():
    paths = sorted((ROOT / "lmdiff").rglob("*.py"))
    assert paths
    found = {str(path.relative_to(ROOT)): unsafe(path.read_text("utf-8")) for path in paths}
    # The one place where a user may allow a model's own code, by an argument that is off, and those
    # that pass on what the user's config or command line says.
    allowed = {
        "lmdiff/denoisers/text_loading.py",
        "lmdiff/pipelines/text_agents.py",
        "lmdiff/evaluation/text_commands.py",
    }
    flagged = {path: set(calls) for path, calls in found.items() if calls}
    assert flagged == {path: {"trust_remote_code="} for path in allowed}
    for function in (load_text_model, load_tokenizer, load_text_agent):
        assert inspect.signature(function).parameters["trust_remote_code"].default is False
    assert TextModelConfig().trust_remote_code is Writing().trust_remote_code is False
