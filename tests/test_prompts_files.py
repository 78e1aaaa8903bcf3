"""Styles, wildcards and lists of prompts from files, and prompts explained."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from cyclopts import App, Parameter

from checkpoint_cases import toy_tokenizer
from safelight.cli.prompt import register
from safelight.conditioning.text import Reader
from safelight.errors import ModelFileError, RequestError
from safelight.models.tokenizer import BertTokenizer
from safelight.presets import PRESETS
from safelight.tasks.prompts.explain import Explained, explain, unread
from safelight.tasks.prompts.for_model import explain_wording
from safelight.tasks.prompts.readers import readers
from safelight.tasks.prompts.styles import Style, chosen, read_styles, styled
from safelight.tasks.prompts.wildcards import MAX_DEPTH, Wildcards
from safelight.tasks.prompts.wording import Wording
from safelight.tasks.prompts.words import read_prompts
from toy_family import toy_tokenizers

# Styles

TABLE = """\
name,prompt,negative_prompt
photo,"a photo of {prompt}, sharp",blurry
# a heading,,
,,

ink,ink drawing,
"two
lines","a
{prompt}",""
"""


def table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "styles.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_styles_of_a_table(tmp_path: Path) -> None:
    expected = {
        "photo": Style("photo", "a photo of {prompt}, sharp", "blurry"),
        "ink": Style("ink", "ink drawing"),
        "two\nlines": Style("two\nlines", "a\n{prompt}"),
    }
    assert read_styles(table(tmp_path, TABLE)) == expected
    assert read_styles(table(tmp_path, TABLE, "utf-8-sig")) == expected
    assert read_styles(table(tmp_path, TABLE.replace("\n", "\r\n"))).keys() >= {"photo", "ink"}
    assert read_styles(table(tmp_path, "name,text\nink,ink drawing\n")) == {"ink": Style("ink", "ink drawing")}
    assert read_styles(table(tmp_path, "name,prompt,negative_prompt\n")) == {}


@pytest.mark.parametrize(
    ("prompt", "negative", "names", "expected"),
    [
        ("an apple", "", ["photo"], ("a photo of an apple, sharp", "blurry")),
        ("an apple", "old", ["ink"], ("an apple, ink drawing", "old")),
        ("", "", ["ink"], ("ink drawing", "")),
        ("an apple", "old", ["ink", "photo"], ("a photo of an apple, ink drawing, sharp", "old, blurry")),
        ("an apple # of Newton", "", ["ink"], ("an apple, ink drawing", "")),
        ("an apple # of Newton", "", [], ("an apple # of Newton", "")),
    ],
)
def test_a_prompt_in_styles(
    tmp_path: Path, prompt: str, negative: str, names: list[str], expected: tuple[str, str]
) -> None:
    path = table(tmp_path, TABLE)
    assert styled(prompt, negative, chosen(names, read_styles(path), path)) == expected
    assert Wording(prompt, negative, style=tuple(names), styles=path).resolved(0) == Wording(*expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,prompt,negative_prompt\nphoto,a, photo,x\n", "line 2: 'photo' has 4 cells for 3 columns: put quotes"),
        ("name,prompt,negative_prompt\nok,a,b\nphoto,a\n", "line 3: 'photo' has 2 cells for 3 columns"),
        ("name,prompt,negative_prompt\na,b,c\na,d,e\n", "line 3: there is a 'a' already"),
        ('name,prompt,negative_prompt\na,"b" c,d\n', "line 2: this is no row"),
        ('name,prompt,negative_prompt\na,b,c\nd,"e,f\n', "line 3: this is no row"),
        ("title,words\na,b\n", "line 1: the columns must be name,prompt,negative_prompt"),
        ("", "line 0: the columns must be name,prompt,negative_prompt"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        read_styles(table(tmp_path, text))
    assert str(error.value).startswith("styles: ")
    assert f"styles.csv' {message}" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match=r"cannot read the table of styles '.*none.csv' \(No such file or directory\)"
    ):
        read_styles(tmp_path / "none.csv")
    with pytest.raises(RequestError, match="is no UTF-8 in line 2: save it as UTF-8"):
        read_styles(table(tmp_path, "name,prompt\nété,x\n", "latin-1"))
    with pytest.raises(RequestError, match="has a zero byte in line 2"):
        read_styles(table(tmp_path, "name,prompt\na,\0\n"))
    with pytest.raises(RequestError, match=r"there is no style 'pencil' in '.*styles.csv': it has photo, ink, two"):
        Wording("a", style=("pencil",), styles=table(tmp_path, TABLE)).resolved(0)
    with pytest.raises(RequestError, match="style 'ink' needs a table of styles: give one by --styles"):
        Wording("a", style=("ink",)).resolved(0)


# Wildcards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "wildcards"
    (found / "deep").mkdir(parents=True)
    (found / "animal.txt").write_text("# animals\ndog\ncat\n\n  bird  \n", "utf-8")
    (found / "hair_color.txt").write_text("red\n", "utf-8")
    (found / "deep" / "place.txt").write_text("on a __ground__\n", "utf-8")
    (found / "ground.txt").write_text("lawn\n", "utf-8")
    (found / "loop.txt").write_text("a __loop__\n", "utf-8")
    (found / "many.txt").write_text("__many2__ " * 40 + "\n", "utf-8")
    (found / "many2.txt").write_text("__ground__ " * 40 + "\n", "utf-8")
    (found / "empty.txt").write_text("# nothing\n", "utf-8")
    (found / "bad.txt").write_bytes(b"a\n\xff\n")
    (tmp_path / "secret.txt").write_text("secret\n", "utf-8")
    (found / "link.txt").symlink_to(tmp_path / "secret.txt")
    return found


def test_a_seed_chooses_a_line(folder: Path) -> None:
    files = Wildcards(folder)
    words = [files.resolve("an __animal__", seed) for seed in range(300)]
    counted = Counter(words)
    assert counted.keys() == {"an dog", "an cat", "an bird"}
    assert min(counted.values()) > 60
    assert words == [Wildcards(folder).resolve("an __animal__", seed) for seed in range(300)]
    assert files.resolve("an __animal__", 7) == "an bird", "the choice of a seed never changes"
    pairs = {files.resolve("__animal__ __animal__", seed) for seed in range(100)}
    assert len(pairs) == 9, "each is chosen for itself"
    both = [(files.resolve("__animal__", s), files.resolve("__animal__", s, "negative_prompt")) for s in range(50)]
    assert len(set(both)) == 9


def test_what_is_a_wildcard(folder: Path) -> None:
    files = Wildcards(folder)
    assert files.resolve("__hair_color__ hair __deep/place__", 0) == "red hair on a lawn"
    assert files.resolve("__deep\\place__", 0) == "on a lawn"
    for text in ("", "a_b", "__", "____", "________", "a__b", "__!__", "__name__init"[:6]):
        assert files.resolve(text, 0) == text
    assert Wording("__animal__").resolved(0).prompt == "__animal__", "without a folder these are words"


def test_all_prompts_have_wildcards(folder: Path) -> None:
    wording = Wording("__ground__", "no __hair_color__", "__ground__ 2", "no __ground__", wildcards=folder)
    assert wording.resolved(3) == Wording("lawn", "no red", "lawn 2", "no lawn")
    styles = table(folder, "name,prompt,negative_prompt\nout,{prompt} __deep/place__,\n")
    assert Wording("a dog", style=("out",), styles=styles, wildcards=folder).resolved(0).prompt == "a dog on a lawn"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__none__", "negative_prompt: there is no none.txt for __none__ in"),
        ("__../secret__", "negative_prompt: __../secret__ is not in the folder of wildcards"),
        ("__/etc/passwd__", "negative_prompt: __/etc/passwd__ is not in the folder of wildcards"),
        ("__link__", "negative_prompt: __link__ is not in the folder of wildcards"),
        ("__loop__", f"negative_prompt: __loop__ is more than {MAX_DEPTH} wildcards deep: does it name itself?"),
        ("__many__", "negative_prompt: there are more than 1000 wildcards in it: use fewer"),
        ("x" * 31_999 + " __ground__", "negative_prompt: with its wildcards it is longer than 32000 characters"),
        ("__empty__", "for __empty__ has no lines: write one or more"),
        ("__bad__", "is no UTF-8 in line 2"),
        ("__deep__", "negative_prompt: there is no deep.txt for __deep__"),
    ],
)
def test_wildcards_that_cannot_be(folder: Path, text: str, message: str) -> None:
    with pytest.raises(RequestError) as error:
        Wording("a", text, wildcards=folder).resolved(0)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"there is no folder of wildcards '.*nowhere': name an existing one"):
        Wording("a", wildcards=tmp_path / "nowhere").resolved(0)


# Lists


def test_lists_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa red apple\r\n\r\n# not this\n  a dog, [a|b] # but this  \n", "utf-8")
    assert read_prompts(path) == ["a red apple", "a dog, [a|b] # but this"]
    path.write_text("# nothing\n\n", "utf-8")
    with pytest.raises(RequestError, match=r"the list of prompts '.*prompts.txt' has none: write one a line"):
        read_prompts(path)
    with pytest.raises(RequestError, match="cannot read the list of prompts"):
        read_prompts(tmp_path)


# Explained


def weights(explained: Explained) -> list[list[list[tuple[str, float]]]]:
    """Tokens of every chunk of the first tower, by phase."""
    return [
        [[(token.text, token.weight) for token in chunk] for chunk in phase.sayings[0].readings[0].chunks]
        for phase in explained.phases
    ]


WORDS = toy_tokenizer()


def towers(name: str) -> dict[str, Reader]:
    preset = PRESETS[name]
    return readers(preset, toy_tokenizers(preset) if name.startswith("ldm") else dict.fromkeys(preset.networks, WORDS))


def test_tokens_weights_and_chunks() -> None:
    explained = explain("a (red:1.3) apple BREAK dog", towers("sd1"), 20)
    assert [[token for token, _ in chunk] for chunk in weights(explained)[0]] == [["a", "red", "apple"], ["dog"]]
    assert [[weight for _, weight in chunk] for chunk in weights(explained)[0]] == [[1.0, 1.3, 1.0], [1.0]]
    assert explained.phases[0].steps == [(1, 20)]
    assert explained.text().splitlines() == [
        "prompt: a (red:1.3) apple BREAK dog",
        "  steps 1-20 of 20",
        "      text, chunk 1, 3 of 75 tokens: a red(1.3) apple",
        "      text, chunk 2, 1 of 75 tokens: dog",
    ]


def test_steps_parts_and_tags() -> None:
    text = "# x\na [red|blue] apple <lora:fruit:0.8> AND a [dog:car:3] :0.5"
    explained = explain(text, towers("sd1"), 5)
    assert [phase.steps for phase in explained.phases] == [[(1, 1), (3, 3)], [(2, 2)], [(4, 4)], [(5, 5)]]
    assert [(tag.kind, tag.arguments) for tag in explained.tags] == [("lora", ["fruit", "0.8"])]
    lines = explained.text().splitlines()
    assert lines[:8] == [
        "prompt: a [red|blue] apple <lora:fruit:0.8> AND a [dog:car:3] :0.5",
        "  tag lora: fruit, 0.8",
        "  steps 1, 3 of 5",
        "    say, weight 1",
        "      text, chunk 1, 3 of 75 tokens: a red apple",
        "    and, weight 0.5",
        "      text, chunk 1, 2 of 75 tokens: a dog",
        "  step 2 of 5",
    ]
    negative = explain("a AND b <lora:x:1>", towers("sd1"), 5, negative=True)
    assert (negative.field, negative.tags, len(negative.phases[0].sayings)) == ("negative_prompt", [], 1)


def test_towers_that_read_the_same_are_shown_once() -> None:
    [saying] = explain("a dog", towers("sdxl"), 5).phases[0].sayings
    assert [card.towers for card in saying.readings] == [["text", "text_2"]]
    [saying] = explain("a dog", towers("sdxl"), 5, second="a car").phases[0].sayings
    assert [(card.towers, card.chunks[0][-1].text) for card in saying.readings] == [
        (["text"], "dog"),
        (["text_2"], "car"),
    ]


def test_what_is_not_read() -> None:
    name = next(name for name, preset in PRESETS.items() if name.startswith("ldm") and preset.words)
    found = towers(name)
    assert isinstance(found["text"].tokenizer, BertTokenizer)
    text = "a " * 74 + "[a|a a] (a:1.5) a"
    assert unread(text, found, 4) == 3
    explained = explain(text, found, 4)
    assert [len(p.sayings[0].readings[0].unread) for p in explained.phases] == [2, 3]
    assert "      text, not read, 2 tokens: a(1.5) a" in explained.text().splitlines()
    assert unread("a " * 75, found, 4) == 0
    assert unread("a " * 999, towers("sd1"), 4) == 0, "CLIP reads all of it, chunk by chunk"


def test_what_cannot_be_explained() -> None:
    with pytest.raises(RequestError, match="this model is not told words: there is no prompt to explain"):
        explain("a", {}, 5)
    with pytest.raises(RequestError, match="steps cannot be 0: give a whole number from 1"):
        explain("a", towers("sd1"), 0)


def test_a_prompt_for_a_shipped_model(folder: Path) -> None:
    one, other = explain_wording(Wording("a red __animal__", "[apple]", wildcards=folder), "tiny", seed=7)
    assert one.prompt == "a red bird"
    assert (one.steps, other.field) == (PRESETS["tiny"].steps, "negative_prompt")
    with pytest.raises(ModelFileError):
        explain_wording(Wording("a"), "nowhere.safetensors")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    app = App(default_parameter=Parameter(negative=()), result_action="return_value")
    register(app)
    app(["prompt", "explain", "a (red:1.5) apple", "--steps", "4", "--negative", "[dog|cat]"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "prompt: a (red:1.5) apple"
    assert shown[2] == "      text, chunk 1, 3 of 75 tokens: a red(1.5) apple"
    assert [line for line in shown if "step" in line] == ["  steps 1-4 of 4", "  steps 1, 3 of 4", "  steps 2, 4 of 4"]
    app(["prompt", "explain", "a (red:1.5) apple", "--emphasis", "ignore", "--json"])
    [found] = json.loads(capsys.readouterr().out)["prompts"]
    tokens = found["phases"][0]["sayings"][0]["readings"][0]["chunks"][0]
    assert [(token["text"], token["weight"]) for token in tokens] == [("a", 1.0), ("red", 1.0), ("apple", 1.0)]
