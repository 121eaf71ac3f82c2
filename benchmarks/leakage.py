"""What the leakage check finds, misses and costs: on a dataset as it is, on copies planted in it, and at 100,000 documents.

python benchmarks/leakage.py articles.jsonl --text "{{ title }}\n\n{{ content }}" --document title
python benchmarks/leakage.py articles.jsonl --text "{{ content }}" --document title --planted 100 --minhash
python benchmarks/leakage.py sherlock.txt --blocks 2000 --start "START OF THE [^*]*[*]+" --end "[*]+ ?END OF" --planted 60
python benchmarks/leakage.py news.csv --columns class,title,text --text "{{ title }}\n{{ text }}" --lengths 40
python benchmarks/leakage.py --scale 100000
"""

import argparse
import itertools
import math
import random
import re
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np

from paretune.data.leakage import NEAR, NGRAM, Near, Pair, _distinct_grams, _hashes, find_pairs
from paretune.data.ngrams import COMMON, _positions
from paretune.data.prepare import split_documents
from paretune.data.sources import iterate_rows
from paretune.data.templates import parse_template, render
from paretune.data.words import words_of
from paretune.study.data import SPLITS, Source, Split

THRESHOLDS = (0.3, 0.4, 0.5, 0.7)
ALL = (Near(math.inf, NGRAM, min(THRESHOLDS)),)
MIN_WORDS = 100
"""Of a document that is copied; shorter ones have too few sentences to alter."""
LENGTHS = (8, 20, 30, 45, 60, 90, 150, 300, 10**9)
"""Words: the ends of the rows of `--lengths`."""
LONG_ALONE = (Near(math.inf, NGRAM, 0.4),)
"""How texts of every length were compared before short ones had n-grams of their own."""
RUN = 4
"""Words in a row that two texts have in common by more than chance."""
Texts = dict[str, dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?")
    parser.add_argument("--text", default="{{ text }}", help="template over the fields of a record")
    parser.add_argument("--document", help="field that names a document")
    parser.add_argument("--chapters", help="text files: regular expression of a heading")
    parser.add_argument("--blocks", type=int, help="text files: documents of so many characters")
    parser.add_argument("--start", help="text files: regular expression that the text begins after")
    parser.add_argument("--end", help="text files: regular expression that the text ends at")
    parser.add_argument("--seed", type=int, default=13, help="of the split")
    parser.add_argument("--planted", type=int, default=0, help="held-out documents copied into training, for each kind of copy")
    parser.add_argument("--lengths", type=int, default=0, help="held-out documents of each length of which parts are planted")
    parser.add_argument("--columns", help="csv without a header: names of its columns")
    parser.add_argument("--minhash", action="store_true", help="find the planted copies by MinHash as well")
    parser.add_argument("--scale", type=int, default=0, help="time and memory on so many random documents of 500 words")
    arguments = parser.parse_args()
    if arguments.scale:
        measure_scale(arguments.scale)
    if arguments.path:
        texts = read(arguments)
        measure_as_it_is(texts)
        if arguments.lengths:
            measure_lengths(texts, arguments.lengths)
        if arguments.planted:
            measure_planted(texts, arguments.planted, arguments.minhash)


def read(arguments: argparse.Namespace) -> Texts:
    template = parse_template(arguments.text.replace("\\n", "\n"))
    documents: dict[str, str] = {}
    fields = {name: getattr(arguments, name) for name in ("path", "chapters", "blocks", "start", "end")}
    if arguments.columns:
        fields |= {"header": False, "columns": tuple(arguments.columns.split(","))}
    for number, row in enumerate(iterate_rows(Source(**fields), arguments.path)):
        name = row.values[arguments.document] if arguments.document else str(number)
        documents[name] = documents.get(name, "") + render(template, row.values, row.where)
    side = split_documents(documents, Split(seed=arguments.seed))
    return {split: {name: text for name, text in documents.items() if side[name] == split} for split in SPLITS}


def measure_as_it_is(texts: Texts) -> None:
    print("documents: " + ", ".join(f"{split} {len(documents)}" for split, documents in texts.items()))
    pairs, seconds = timed(partial(find_pairs, texts))
    kinds = {kind: sum(pair.kind == kind for pair in pairs) for kind in ("exact", "normalised", "near")}
    print(f"pairs: {kinds} in {seconds:.1f} s of one core; peak memory of the process {peak_mib()} MiB")
    training = [_distinct_grams(_hashes(words_of(text)), NGRAM) for text in texts["train"].values()]
    index, times = np.unique(np.concatenate(training), return_counts=True)
    rare = index[times <= COMMON]
    print("split       documents  share a 13-gram  ... that is no boilerplate  half in one training document")
    for split in ("validation", "test"):
        held_out = [_distinct_grams(_hashes(words_of(text)), NGRAM) for text in texts[split].values()]
        half = {pair.other_document for pair in pairs if pair.other == split and pair.split == "train"}
        shares = [np.mean([len(_positions(known, grams)) > 0 for grams in held_out]) for known in (index, rare)]
        print(f"{split:<11} {len(held_out):9}  {shares[0]:15.1%}  {shares[1]:26.1%}  {len(half) / len(held_out):29.1%}")


def measure_planted(texts: Texts, count: int, minhash: bool) -> None:
    """Recall: of the planted copies, those found with their original. Other: held-out documents found besides."""
    generator = random.Random(0)
    touched = {pair.other_document for pair in find_pairs(texts, near=ALL)}
    held_out = [
        (name, text)
        for split in ("validation", "test")
        for name, text in texts[split].items()
        if name not in touched and len(words_of(text)) >= MIN_WORDS
    ]
    chosen = generator.sample(held_out, min(count, len(held_out)))
    before = {
        t: len({pair.other_document for pair in found(find_pairs(texts, near=(Near(math.inf, NGRAM, t),)), t)})
        for t in THRESHOLDS
    }
    print(f"\n{len(chosen)} planted copies of each kind; held-out documents found without any: " + columns(before))
    print(
        "kind of copy" + " " * 24 + "  ".join(f"recall at {t}" for t in THRESHOLDS) + "   others found" + "  MinHash" * minhash
    )
    fillers = list(texts["train"].values())
    for kind, alter in COPIES.items():
        copies = {f"planted {name}": alter(text, generator, fillers) for name, text in chosen}
        with_copies = texts | {"train": texts["train"] | copies}
        pairs = find_pairs(with_copies, near=ALL)
        recall = {t: recalled(found(pairs, t), copies) for t in THRESHOLDS}
        others = {t: wrong(found(pairs, t), copies) for t in THRESHOLDS}
        by_minhash = f"  {minhash_recall(with_copies, copies):7.0%}" if minhash else ""
        print(f"{kind:<36}" + "  ".join(f"{recall[t]:13.0%}" for t in THRESHOLDS) + "   " + columns(others) + by_minhash)


def measure_lengths(texts: Texts, count: int) -> None:
    """By words of the held-out document, 13-grams alone / as it is now: what is found with nothing planted, and wrongly (less
    than half of its words stand there in runs); and the recall of copies of a share of its words in one or two parts."""
    held_out = {name: text for split in ("validation", "test") for name, text in texts[split].items()}
    ways = (LONG_ALONE, NEAR)
    alarms = [
        {(pair.document, pair.other_document) for pair in find_pairs(texts, near=way) if pair.kind == "near"} for way in ways
    ]
    sides = {name: text for split in texts.values() for name, text in split.items()}
    wrong = [{pair for pair in of_way if in_runs(sides[pair[0]], sides[pair[1]]) < 0.5} for of_way in alarms]
    loose = {pair.other_document for pair in find_pairs(texts, near=(Near(math.inf, RUN, 0.2),))}
    cases = list(itertools.product((0.5, 0.6, 0.75, 0.9), (1, 2)))
    print("words       held out    found     wrong   " + "  ".join(f"{share:.0%} in {parts}" for share, parts in cases))
    generator, fillers = random.Random(0), [text for text in texts["train"].values() if words_of(text)]
    recalls = {}
    for begin, end in itertools.pairwise(LENGTHS):
        names = [name for name, text in held_out.items() if begin <= len(words_of(text)) < end]
        chosen = [name for name in names if name not in loose]
        chosen = generator.sample(chosen, min(count, len(chosen)))
        if len(chosen) < 5:
            continue
        for case in cases:
            copies = {f"planted {name}": planted(held_out[name], *case, generator, fillers) for name in chosen}
            pairs = [find_pairs(texts | {"train": texts["train"] | copies}, near=way) for way in ways]
            recalls[case] = "/".join(f"{100 * recalled(of_way, copies):.0f}" for of_way in pairs)
        told = [
            "/".join(str(len({pair[1] for pair in of_way if pair[1] in names})) for of_way in sets) for sets in (alarms, wrong)
        ]
        row = "  ".join(f"{recalls[case]:>8}" for case in cases)
        print(f"{begin:3} to {end - 1 if end < 10**9 else '':<4} {len(names):8}  {told[0]:>7}  {told[1]:>7}  {row}", flush=True)


def planted(text: str, share: float, parts: int, generator: random.Random, fillers: list[str]) -> str:
    """`share` of the words of `text`, in `parts` runs from its beginning and its end, between other texts."""
    words = text.split()
    size = round(share * len(words) / parts)
    begins = (0, len(words) - size) if parts == 2 else (generator.randint(0, len(words) - size),)
    runs = [words[begin : begin + size] for begin in begins]
    return " ".join([generator.choice(fillers), *(" ".join([*run, generator.choice(fillers)]) for run in runs)])


def in_runs(text: str, other_text: str) -> float:
    """Share of the words of `other_text` that stand in `text` in runs of at least RUN words."""
    words, of_text = words_of(other_text), words_of(text)
    grams = {tuple(of_text[n : n + RUN]) for n in range(len(of_text) - RUN + 1)}
    inside = {n + k for n in range(len(words) - RUN + 1) if tuple(words[n : n + RUN]) in grams for k in range(RUN)}
    return len(inside) / max(1, len(words))


def found(pairs: Iterable[Pair], threshold: float) -> list[Pair]:
    return [pair for pair in pairs if pair.coverage >= threshold]


def recalled(pairs: Iterable[Pair], copies: Mapping[str, str]) -> float:
    return len({pair.document for pair in pairs if pair.document == f"planted {pair.other_document}"}) / len(copies)


def wrong(pairs: Iterable[Pair], copies: Mapping[str, str]) -> int:
    """Copies that were found with a document that is not their original."""
    return sum(pair.document in copies and pair.document != f"planted {pair.other_document}" for pair in pairs)


def columns(numbers: Mapping[float, int]) -> str:
    return " / ".join(str(number) for number in numbers.values())


Alter = Callable[[str, random.Random, list[str]], str]


def sentences_of(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)


def normalised(text: str, *_: object) -> str:
    return re.sub(r"[^\w\s]", "", text).upper().replace(" ", "  ").replace("\n", " \r\n")


def word_changed(text: str, generator: random.Random, _: list[str]) -> str:
    return " ".join(" ".join(changed(sentence.split(), generator)) for sentence in sentences_of(text))


def changed(words: list[str], generator: random.Random) -> list[str]:
    if words:
        words[generator.randrange(len(words))] = "otherwise"
    return words


def reordered(text: str, generator: random.Random, _: list[str]) -> str:
    sentences = sentences_of(text)
    return " ".join(generator.sample(sentences, len(sentences)))


def part(begin: float, end: float) -> Alter:
    def cut(text: str, *_: object) -> str:
        words = text.split(" ")
        return " ".join(words[int(begin * len(words)) : int(end * len(words))])

    return cut


def inside_another(text: str, generator: random.Random, fillers: list[str]) -> str:
    return f"{generator.choice(fillers)}\n\n{text}\n\n{generator.choice(fillers)}"


def window_over_the_edge(text: str, generator: random.Random, fillers: list[str]) -> str:
    """What a window as long shows that begins two fifths later: the rest of the text, then the beginning of another."""
    words = text.split(" ")
    return " ".join([*words[int(0.4 * len(words)) :], *generator.choice(fillers).split(" ")[: int(0.4 * len(words))]])


def some_words_changed(share: float) -> Alter:
    def change(text: str, generator: random.Random, _: list[str]) -> str:
        return " ".join("otherwise" if generator.random() < share else word for word in text.split(" "))

    return change


COPIES: dict[str, Alter] = {
    "exact": lambda text, *_: text,
    "case, punctuation, white space": normalised,
    "sentences reordered": reordered,
    "inside a longer document": inside_another,
    "three quarters": part(0, 0.75),
    "first half": part(0, 0.5),
    "second half": part(0.5, 1),
    "first quarter": part(0, 0.25),
    "window of the middle 60 %": part(0.2, 0.8),
    "window over the edge of a document": window_over_the_edge,
    "one word in 100 changed": some_words_changed(0.01),
    "one word in 25 changed": some_words_changed(0.04),
    "a word changed in every sentence": word_changed,
}


def minhash_recall(texts: Texts, copies: Mapping[str, str]) -> float:
    """datasketch's LSH with 128 permutations at Jaccard 0.5 over the same 13-grams."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=0.5, num_perm=128)
    for name, text in texts["train"].items():
        index.insert(name, minhash_of(text, MinHash))
    originals = {name.removeprefix("planted ") for name in copies}
    held_out = {name: text for split in ("validation", "test") for name, text in texts[split].items() if name in originals}
    return sum(f"planted {name}" in index.query(minhash_of(text, MinHash)) for name, text in held_out.items()) / len(held_out)


def minhash_of(text: str, kind: type) -> object:
    sketch = kind(num_perm=128)
    sketch.update_batch([gram.tobytes() for gram in _distinct_grams(_hashes(words_of(text)), NGRAM)])
    return sketch


def measure_scale(count: int) -> None:
    """Documents of 500 words with English-like frequencies; one in a hundred held-out ones has its half in training."""
    generator = np.random.default_rng(0)
    vocabulary = np.array([f"w{number:x}" for number in range(50_000)])
    frequencies = 1 / np.arange(1, len(vocabulary) + 1)
    frequencies /= frequencies.sum()
    documents = {str(n): " ".join(generator.choice(vocabulary, 500, p=frequencies)) for n in range(count)}
    side = split_documents(documents, Split())
    texts = {split: {name: text for name, text in documents.items() if side[name] == split} for split in SPLITS}
    names, held_out = list(texts["train"]), list(texts["test"])[::100]
    for name, copied in zip(names, held_out, strict=False):
        texts["train"][name] = texts["test"][copied][: len(texts["test"][copied]) * 6 // 10] + texts["train"][name]
    before = peak_mib()
    pairs, seconds = timed(partial(find_pairs, texts))
    print(
        f"{count} documents of 500 words: {seconds:.2f} s of one core, {peak_mib() - before} MiB above the {before} MiB before"
    )
    print(f"planted {len(held_out)}, found {len({pair.other_document for pair in pairs})}")


def timed(function: Callable[[], list[Pair]]) -> tuple[list[Pair], float]:
    # Of the processor, so that what else runs on the machine does not count.
    begin = time.process_time()
    return function(), time.process_time() - begin


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
