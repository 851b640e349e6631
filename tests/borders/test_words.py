"""Names, prompts and lists of prompts: what is understood, and what is refused in one sentence."""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sepme._checks import plain
from sepme.atelier.judge import Judge
from sepme.cli._pictures import read_picture
from sepme.cli._prompts import read_prompts
from sepme.concept import Catalogue, Concept, catalogue_of, parse_names, refuse_overlap, slug
from sepme.course.build import read as read_notebook
from sepme.delta import ConceptDelta
from sepme.erasure import erase
from sepme.errors import SepmeWarning
from sepme.jobs.tasks import erase_into, plan
from sepme.model import Backbone
from sepme.scenes.tables import RESULTS, read_table
from tests.miniature import EXACT, KEPT, shared
from tests.refusals import refused
from tests.tiny import make_tiny_pipeline


# ---------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("neon", ["neon"]),
        (" neon , boat,", ["neon", "boat"]),
        ("neon,neon", ["neon"]),
        ("Van  Gogh", ["Van Gogh"]),
        ('"Alex Example, Jr."', ["Alex Example, Jr."]),
        ('boat, "Alex Example, Jr.", neon', ["boat", "Alex Example, Jr.", "neon"]),
        ('"a ""quoted"" name"', ['a "quoted" name']),
        ('Dwayne "The Rock" Johnson', ['Dwayne "The Rock" Johnson']),
        ("Cézanne", ["Cézanne"]),
        ("Ce\u0301zanne", ["Cézanne"]),  # two ways to write one letter
        ("Cézanne, Ce\u0301zanne", ["Cézanne"]),
        ("葛飾北斎", ["葛飾北斎"]),
        ("O'Keeffe", ["O'Keeffe"]),
        ("Li$a", ["Li$a"]),
        ("50%", ["50%"]),
        ("a/b", ["a/b"]),
        ("🦊", ["🦊"]),
        ("👩\u200d🎨", ["👩\u200d🎨"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("tab\tbetween", ["tab between"]),
    ],
)
def test_names_that_are_understood(typed: str, names: list[str]) -> None:
    assert parse_names(typed) == names


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "No concept was named"),
        (" , ,", "No concept was named"),
        ('""', "No concept was named"),
        ('"Alex Example, Jr.', "between double quotes"),
        ('"Alex" Example', "between double quotes"),
        ("neon\x1b[31m", "U+001B"),
        ("neon\x00", "U+0000"),
        ("ne\x07on", "U+0007"),
        ("neon\u0085boat\x7f", "U+007F"),
        ("neon\nboat", "one line"),
        ("\ud800", "U+D800"),
        ("neon\ufffe", "U+FFFE"),
        ("ne\u00adon", "U+00AD"),
        ("neon\u202egp", "U+202E"),
        ("\u2066neon", "U+2066"),
    ],
)
def test_names_that_are_refused(typed: str, said: str) -> None:
    with refused(said):
        parse_names(typed)


@pytest.mark.parametrize("written", ["Cézanne", "Ce\u0301zanne"])
@pytest.mark.parametrize("typed", ["cézanne", "Ce\u0301zanne", " CE\u0301ZANNE "])
def test_a_name_is_known_however_it_is_composed(written: str, typed: str, tmp_path: Path) -> None:
    concept = Concept(f" {written} ", (written,), anchors=("ink",))
    own = Catalogue({written: concept}, {"paul": written})
    content = {"concepts": [{"name": written, "prompts": [written]}], "aliases": {"paul": written}}
    (tmp_path / "c.json").write_text(json.dumps(content))
    made = catalogue_of([written, "ink"], ["boat"])
    for catalogue in (own, made, Catalogue.load(tmp_path / "c.json")):
        (found,) = catalogue.parse(typed)
        assert (found.name, found.prompts[0]) == ("Cézanne", "Cézanne")
    assert own["Paul"] == own[typed] == own.bare(typed)
    with refused("is given twice"):
        catalogue_of([written], [typed])
    with refused("also to be kept"):
        refuse_overlap(concept, [typed])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("neon", "neon"),
        ("Van Gogh", "van-gogh"),
        ("Alex Example, Jr.", "alex-example-jr"),
        ("Cézanne", "cézanne"),
        ("Ce\u0301zanne", "cézanne"),
        ("葛飾北斎", "葛飾北斎"),
        ("a/b\\c", "a-b-c"),
        ("..neon..", "neon"),
        ("C:neon", "c-neon"),
        ("neon*?", "neon"),
        ("console", "console"),
        ("snow_white", "snow_white"),
        ("हिन्दी", "हिन्दी"),  # whose vowels are marks
        ("हिन्दा", "हिन्दा"),
        ("ไทย กี", "ไทย-กี"),
        ("กา", "กา"),
        ("❤\ufe0f neon", "neon"),
    ],
)
def test_file_names_that_can_be_read(name: str, file: str) -> None:
    assert slug(name) == file


@pytest.mark.parametrize(
    "name",
    [
        *("../..", "/", ".", "***", "🦊", " "),
        *("CON", "con", "nul", "aux", "PRN", "com1", "LPT9", "com¹", "LPT³"),
        *("a very long name " * 20, "long" * 100, "葛飾北斎" * 40),
    ],
)
def test_file_names_that_need_a_few_digits(name: str) -> None:
    made = slug(name)
    assert re.fullmatch(r"[\w-]+-[0-9a-f]{8}", made)
    assert len(made.encode()) < 80
    assert slug(name + "x") != made  # two long names stay two files


# ---------------------------------------------------------------------- what the model reads
@pytest.mark.parametrize(
    ("prompt", "lost"),
    [
        ("a painting of a boat in the style of neon", "of neon"),
        ("neon " * 8 + "boat", "boat"),
        ("Claude Monet", "net"),
    ],
)
def test_a_prompt_is_never_cut_without_a_word(prompt: str, lost: str) -> None:
    backbone, keep = shared(), ("house",)
    with refused("falls off", f"'{lost}'"):
        backbone.refuse_unclear((Concept("neon", (prompt,)), keep))
    with refused("falls off"):
        backbone.refuse_unclear((Concept("neon", ("neon",)), (*keep, prompt)))
    with refused("falls off"):
        backbone.refuse_unclear((Concept("neon", ("neon",), anchors=(prompt,)), keep))
    with pytest.warns(SepmeWarning, match=f"'{lost}' falls off"):
        backbone.encode([prompt])
    with pytest.warns(SepmeWarning, match="falls off"):
        backbone.generate(prompt, steps=1)


def test_the_longest_prompt_that_fits_is_taken() -> None:
    backbone = shared()
    prompt = " ".join(["neon"] * (backbone.tokens - 2))
    assert backbone.cut([prompt]) is None
    assert backbone.cut([f"{prompt} neon"]) is not None


@pytest.mark.parametrize(
    ("forgotten", "kept"),
    [
        ("neon", "neon"),
        ("neon", "NEON"),
        ("neon", " neon "),
        ("neon boat", "neon  boat"),
        ("neon boat", "Neon\tBoat"),
        ("a cat", "a cat"),
        ("caf\u00e9", "cafe\u0301"),
    ],
)
def test_prompts_of_the_same_tokens_are_not_both_forgotten_and_kept(
    forgotten: str, kept: str
) -> None:
    backbone: Backbone = shared()
    with refused("to be forgotten", "kept"):
        backbone.refuse_unclear((Concept("it", (forgotten,)), (*KEPT[:1], kept)))
    refuse_overlap(Concept("it", (forgotten,)), ("house",), backbone.reads)  # the control


# ---------------------------------------------------------------------- lists of prompts
TWO = ["a boat in ink style", "a house"]
RED = [TWO[0], 'a "red" house']
UTF8, UTF16 = "utf-8", "utf-16"


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.txt", b"a boat in ink style\na house\n", TWO),
        ("a.txt", b"a boat in ink style\na house", TWO),
        ("a.txt", b"a boat in ink style\r\na house\r\n", TWO),
        ("a.txt", b"a boat in ink style\ra house\r", TWO),
        ("a.txt", b"\xef\xbb\xbfa boat in ink style\na house\n", TWO),
        ("a.txt", "a boat in ink style\na house\n".encode(UTF16), TWO),
        ("a.txt", b"\xfe\xff" + "a boat in ink style\na house\n".encode("utf-16-be"), TWO),
        ("a.txt", b"\n\n  a boat in ink style  \n\t\na house\n\n", TWO),
        ("a.txt", b"# mine\na boat in ink style\n  # more\na house\n", TWO),
        ("a.txt", b"a boat in ink style\na house\na house\n", TWO),
        ("a.txt", b"a boat,  in ink\n", ["a boat, in ink"]),
        ("a.txt", b"prompt\n", ["prompt"]),
        ("a", b"a boat in ink style\na house\n", TWO),
        ("a.csv", b"prompt\na boat in ink style\na house\n", TWO),
        ("a.csv", b"case_number,prompt,seed\n0,a boat in ink style,42\n1,a house,43\n", TWO),
        ("a.csv", b"\xef\xbb\xbfprompt,seed\na boat in ink style,42\na house,43\n", TWO),
        ("a.csv", b"Prompt;Seed\r\na boat in ink style;42\r\na house;43\r\n", TWO),
        ("a.tsv", b"id\tprompt\n0\ta boat in ink style\n1\ta house\n", TWO),
        ("a.csv", b'seed,prompt\n1,"a house, a tree"\n', ["a house, a tree"]),
        ("a.csv", b'seed,prompt\n1,"a ""red"" house"\n', ['a "red" house']),
        ("a.csv", b'"seed","prompt"\n1,a house\n', ["a house"]),
        ("a.csv", b"seed,text\n1,a house\n", ["a house"]),
        ("a.csv", b"seed,caption\n1,a house\n\n2,a boat\n", ["a house", "a boat"]),
        ("a.txt", b"case_number,prompt\n0,a house\n", ["a house"]),  # a table by another name
        ("a.txt", "Ce\u0301zanne\n".encode(), ["Cézanne"]),
        ("a.txt", b"prompt\na boat in ink style\na house\n", TWO),
        ("a", b"# mine\n\nPrompt \na boat in ink style\na house\n", TWO),
        ("a.txt", b'"a boat in ink style"\n\n "a house" \n', TWO),
        ("a.txt", b'"prompt"\n"a boat in ink style"\n"a house"\n', TWO),
        ("a.txt", b'"a ""red"" house"\n', ['a "red" house']),
        ("a.txt", b'"a house, a tree"\n', ["a house, a tree"]),
        ("a.txt", b'"Hi", she said, "bye"\n', ['"Hi", she said, "bye"']),
        ("a.txt", b'"a house"\na boat\n', ['"a house"', "a boat"]),
        ("a.txt", b"{red|blue} house\n[a] boat\n", ["{red|blue} house", "[a] boat"]),
        ("a.txt", b"[[a boat]], <ink> house\n", ["[[a boat]], <ink> house"]),
        ("a.txt", b'"a boat in ink style",\n"a house",\n', TWO),
        ("a.txt", b'  "a boat in ink style",\n  "a house"\n', TWO),
        ("a.txt", b"'a boat in ink style',\n'a house'\n", TWO),
        ("a.txt", "“a boat in ink style”\n“a house”,\n".encode(), TWO),
        ("a.txt", b"- a boat in ink style\n- a house\n", TWO),
        ("a.txt", b"* a boat in ink style\n* a house\n", TWO),
        ("a.txt", "• a boat in ink style\n• a house\n".encode(), TWO),
        ("a.txt", b"1. a boat in ink style\n2. a house\n", TWO),
        ("a.txt", b"9) a boat in ink style\n10) a house\n", TWO),
        ("a.txt", b'prompts:\n  - "a boat in ink style"\n  - "a ""red"" house"\n', RED),
        ("a.txt", b"- a boat\na house\n", ["- a boat", "a house"]),
        ("a.txt", b"2 boats\n3 houses\n", ["2 boats", "3 houses"]),
        ("a.txt", b"caption\na boat in ink style\na house\n", TWO),
        ("a.txt", b"Text\na boat in ink style\na house\n", TWO),
        ("a.txt", b"caption\n", ["caption"]),
        ("a.txt", b"#\n## mine\n#cyberpunk city\n", ["#cyberpunk city"]),
        ("a.txt", "a boat\fin\u2028ink\x0bstyle\u0085\na house\n".encode(), TWO),
        ("a.csv", b"sep=;\r\nseed;prompt\r\n1;a boat in ink style\r\n2;a house\r\n", TWO),
        ("a.txt", b"sep=\t\nseed\tprompt\n1\ta boat in ink style\n2\ta house\n", TWO),
    ],
)
def test_lists_that_are_understood(
    name: str, content: bytes, prompts: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_prompts(tmp_path / name) == prompts


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "no prompt"),
        ("a.txt", b"\n \n# only this\n", "no prompt"),
        ("a.txt", b"\xef\xbb\xbf", "no prompt"),
        ("a.txt", b"caf\xe9\n", "neither UTF-8 nor UTF-16"),
        ("a.txt", b"\xff\xfea", "neither UTF-8 nor UTF-16"),
        ("a.txt", b"\x89PNG\r\n\x1a\n", "neither UTF-8 nor UTF-16"),
        ("a.txt", b"a house\x1b[2J\n", "U+001B"),
        ("a.txt", b"a house\x00\n", "U+0000"),
        ("a.csv", b"", "no column 'prompt'"),
        ("a.csv", b"case_number,words\n0,a house\n", "no column 'prompt'"),
        ("a.csv", b"a boat in ink style\na house\n", "no column 'prompt'"),
        ("a.csv", b"seed,prompt\n0\n", "Row 2"),
        ("a.csv", b"seed,prompt\n0,a house\n1\n", "Row 3"),
        ("a.csv", b'seed,prompt\n0,"a house\n', "quotes"),
        ("a.csv", b"seed,prompt\n", "no prompt"),
        ("a.csv", b"seed,prompt\n0,\n", "no prompt"),
        ("a.jsonl", b'{"prompt": "a house"}\n', "holds JSON"),
        ("a.txt", b'{"prompt": "a house"}\n{"prompt": "a boat"}\n', "holds JSON"),
        ("a.json", b'["a house"]', "holds JSON"),
        ("a.txt", b'\xef\xbb\xbf[\n "a house"]', "holds JSON"),
        ("a.txt", b'[["a boat"]]', "holds JSON"),
        ("a.txt", b"['a boat', 'a house']", "or code"),
        ("a.txt", b'prompts = [\n    "a boat",\n]\n', "or code"),
        ("a.rtf", b"{\\rtf1\\ansi a boat}", "holds RTF"),
        ("a.html", b"<!DOCTYPE html>\n<p>a boat", "holds a web page"),
        ("a.txt", b"\n<html><body>a boat", "holds a web page"),
        ("a.md", b"| prompt | seed |\n|---|:-:|\n| a boat | 1 |\n", "holds a Markdown table"),
        ("a.txt", b"a boat\nNegative prompt: blurry\nSteps: 20, CFG scale: 7\n", "settings"),
        ("a.txt", b"a boat\nSteps: 20, Sampler: Euler a, CFG scale: 7\n", "settings"),
    ],
)
def test_lists_that_are_refused(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(said):
        read_prompts(tmp_path / name)


def test_a_list_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "none.txt"):
        with refused("cannot be read"):
            read_prompts(file)


def test_plain_text_is_composed_and_printable() -> None:
    assert plain("Ce\u0301zanne") == "Cézanne"
    with refused("U+0008"):
        plain("a\x08b")


# ---------------------------------------------------------------------- files of any kind
READERS: dict[str, Callable[[Path], object]] = {
    "prompts.txt": read_prompts,
    "catalogue.json": Catalogue.load,
    "scenes_style.csv": read_table,
    "neon.safetensors": ConceptDelta.load,
    "judge.safetensors": Judge.load,
    "boat.png": lambda file: read_picture(file, 8),
    "00_exercises.ipynb": read_notebook,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda file: file.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(name: str, make: Callable, tmp_path: Path) -> None:
    make(tmp_path / name)
    with refused(name):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_and_tables_may_begin_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    catalogue = Catalogue({"neon": Concept("neon", ("neon",))})
    (tmp_path / "catalogue.json").write_text(catalogue.to_json(), encoding=encoding)
    assert Catalogue.load(tmp_path / "catalogue.json") == catalogue
    table = RESULTS / "scenes_style.csv"
    (tmp_path / "table.csv").write_text(table.read_text(), encoding=encoding)
    assert read_table(tmp_path / "table.csv").equals(read_table(table))


# ---------------------------------------------------------------------- words that were added
def with_words(*added: str) -> Backbone:
    pipe = make_tiny_pipeline()
    for word in added:
        rows = torch.randn(2, 96, generator=torch.Generator().manual_seed(1))
        pipe.load_textual_inversion(rows if word.endswith("2") else rows[:1], token=word)
    return Backbone(pipe, "with words", guidance=4.0, steps=3)


@pytest.mark.parametrize("word", ["<my-style>", "mystyle", "<my style 2>", "sks_2"])
def test_a_word_of_textual_inversion_means_something(word: str, recwarn) -> None:
    backbone = with_words(word)
    vocabulary = backbone.vocabulary
    assert vocabulary.words is not None
    assert vocabulary.unknown([f"a {word} boat", "a qzx"]) == ("qzx",)
    assert not vocabulary.knows_any(["qzx"])
    delta = erase(backbone, Concept(word, (word,)), KEPT, EXACT)
    assert [w for w in recwarn if "means nothing" in str(w.message)] == []
    assert delta.forgotten == (word,)


@pytest.mark.parametrize("word", ["<x>", "sks_2"])
def test_a_delta_of_a_learnt_word_goes_with_its_embedding(word: str) -> None:
    concept = Concept(word, (word, f"a boat in {word} style"))
    delta = erase(with_words(word), concept, KEPT, EXACT)
    assert delta.digest == erase(with_words(word, "<other>"), concept, KEPT, EXACT).digest
    half = with_words(word)
    half.pipe.to(torch.bfloat16)
    delta.check_model(half)
    delta.check_model(with_words())  # which cannot be asked for the word
    other = with_words(word)
    other.pipe.text_encoder.get_input_embeddings().weight.data[-1] *= -1
    assert other.fingerprint == delta.base
    with refused("has another embedding", f"'{concept.name}' was erased"):
        delta.check_model(other)


@pytest.mark.parametrize("word", ["<x>", "sks_2"])
def test_a_word_learnt_anew_is_erased_anew(word: str, tmp_path: Path) -> None:
    backbone, said = with_words(word), []
    tasks = plan([Concept(word, (word,))], KEPT, None, EXACT)
    for _ in range(2):
        erase_into(tmp_path, tasks, backbone, say=said.append, progress=False)
    assert "Already erased" in said[-1]
    backbone.pipe.text_encoder.get_input_embeddings().weight.data[-1] *= -1
    with refused("other settings made"):
        erase_into(tmp_path, tasks, backbone, say=said.append, progress=False)


def test_a_word_of_several_vectors_is_read_as_it_is_drawn() -> None:
    backbone, word = with_words("sks_2"), "a sks_2 boat"
    assert len(backbone.reads(word)) == 4
    assert backbone.cut([f"a boat in the style of {word}"]) is not None
    drawn, *_ = backbone.pipe.encode_prompt(word, "cpu", 1, False)
    assert torch.equal(backbone.encode([word]), drawn)


@pytest.mark.parametrize("words", ["a boat", "a Boat, NEON", "boa", "é", "a", "x", "dotted ships"])
def test_known_words_are_those_of_one_token(words: str) -> None:
    tokenizer = shared().pipe.tokenizer
    pieces = [w for w in re.findall("[^\\W_]+", words) if len(tokenizer.tokenize(w)) > 1]
    if words != "é":  # which the miniature's tokenizer cannot tell from any other
        assert list(shared().vocabulary.unknown([words])) == pieces


def test_a_prompt_that_is_too_long_is_named_in_our_words_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    said = Backbone.load(device="cpu").cut(["a giraffe in vaporwave style"])
    assert "falls off" in said
    assert caplog.text == ""
