"""What music21 ships: which files belong to which collection, under which licence, and how they are
cut into pieces.

music21's `corpus/license.txt` says that the encoders permit distribution and that files may carry
restrictions of their own; `licence` is what the files (or their folder) say, "music21-corpus" where
they say nothing more. Collections that reserve rights, forbid commercial use, or whose rights line
names a publisher are off by default.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from mgen.errors import UserError

BUNDLED = "music21-corpus"


@dataclasses.dataclass(frozen=True)
class Collection:
    """A folder of music21's corpus, or some files of it.

    Attributes:
      name: as `collections=` and `Record.collection` write it.
      configs: the configs that read it.
      files: glob patterns under music21's corpus folder.
      licence: SPDX name where there is one, else a few words.
      composer: of every piece, empty where the files say.
      default: whether it is read when `collections=` is not given.
      without: names of files that another collection takes.
    """

    name: str
    configs: tuple[str, ...]
    files: tuple[str, ...]
    licence: str = BUNDLED
    composer: str = ""
    default: bool = True
    without: tuple[str, ...] = ()


UT_ORPHEUS = ("madrigal.5.4.mxl", "madrigal.5.5.mxl")  # their rights line names the publisher
TUNES = ("band", "tunes")
SCORES = ("quartets",)
READABLE = (".mxl", ".xml", ".musicxml", ".krn", ".abc")

COLLECTIONS = (
    Collection("nottingham", TUNES, ("nottingham-dataset/*.abc",)),
    Collection("ryansMammoth", TUNES, ("ryansMammoth/*.abc",)),
    Collection("oneills1850", TUNES, ("oneills1850/*.abc",)),
    Collection("airdsAirs", TUNES, ("airdsAirs/*.abc",)),
    Collection("miscFolk", TUNES, ("miscFolk/*.abc",)),
    Collection("leadSheet", TUNES, ("leadSheet/foster*.mxl",), "public domain", "Stephen Foster"),
    Collection(
        "essenFolksong", TUNES, ("essenFolksong/*.abc",), "non-commercial use only", default=False
    ),
    Collection("bach", SCORES, ("bach/*.mxl", "bach/*.xml"), composer="Johann Sebastian Bach"),
    Collection(
        "bach_ccarh",
        SCORES,
        ("bach/*.krn",),
        "rights to derivative electronic formats reserved (CCARH)",
        "Johann Sebastian Bach",
        default=False,
    ),
    # Its .krn files are movements that are there as .mxl too.
    Collection("beethoven", SCORES, ("beethoven/**/*.mxl",), composer="Ludwig van Beethoven"),
    Collection("ciconia", SCORES, ("ciconia/*",), "CC-BY-SA-3.0", "Johannes Ciconia"),
    Collection("corelli", SCORES, ("corelli/**/*",), "CC-BY", "Arcangelo Corelli"),
    Collection("cpebach", SCORES, ("cpebach/*",), composer="Carl Philipp Emanuel Bach"),
    Collection("handel", SCORES, ("handel/**/*",), composer="George Frideric Handel"),
    Collection("haydn", SCORES, ("haydn/**/*",), composer="Joseph Haydn"),
    Collection(
        "josquin", SCORES, ("josquin/*.abc",), "GPL-2.0-or-later", composer="Josquin des Prez"
    ),
    Collection("luca", SCORES, ("luca/*",), "CC-BY-SA-3.0", "D. Luca"),
    Collection("lusitano", SCORES, ("lusitano/*",), "CC0-1.0", "Vicente Lusitano"),
    Collection(
        "monteverdi",
        SCORES,
        ("monteverdi/*.mxl",),
        composer="Claudio Monteverdi",
        without=UT_ORPHEUS,
    ),
    Collection(
        "monteverdi_utorpheus",
        SCORES,
        tuple(f"monteverdi/{name}" for name in UT_ORPHEUS),
        "© UT Orpheus Edizioni 2003",
        "Claudio Monteverdi",
        default=False,
    ),
    Collection("mozart", SCORES, ("mozart/**/*",), composer="Wolfgang Amadeus Mozart"),
    Collection(
        "palestrina",
        SCORES,
        ("palestrina/*.krn",),
        "rights to derivative electronic formats reserved (John Miller)",
        "Giovanni Pierluigi da Palestrina",
        default=False,
    ),
    Collection("schoenberg", SCORES, ("schoenberg/**/*",), composer="Arnold Schoenberg"),
    Collection("schubert", SCORES, ("schubert/*",), composer="Franz Schubert"),
    Collection("schumann_clara", SCORES, ("schumann_clara/**/*",), composer="Clara Schumann"),
    Collection("schumann_robert", SCORES, ("schumann_robert/**/*",), composer="Robert Schumann"),
    Collection("trecento", SCORES, ("trecento/*",)),
    Collection("verdi", SCORES, ("verdi/*",), composer="Giuseppe Verdi"),
    Collection("weber", SCORES, ("weber/*",), "public domain", "Carl Maria von Weber"),
    Collection("webern", SCORES, ("webern/*",), "CC-BY-SA", "Anton Webern"),
)


def choose(config: str, names: Sequence[str] | None) -> list[Collection]:
    """The collections that `config` reads: those named, or all that are on by default."""
    known = {found.name: found for found in COLLECTIONS if config in found.configs}
    if names is None:
        return [found for found in known.values() if found.default]
    for name in names:
        if name not in known:
            raise UserError(
                f"collections: {name!r} is not one of {config}'s: {', '.join(sorted(known))}"
            )
    return [known[name] for name in sorted(set(names))]


def find_files(collection: Collection, root: Path) -> list[Path]:
    """The files of a collection in music21's corpus folder `root`, sorted."""
    found = {path for pattern in collection.files for path in root.glob(pattern)}
    return sorted(
        path
        for path in found
        if path.suffix in READABLE and path.is_file() and path.name not in collection.without
    )


def work_of(collection: str, path: Path, root: Path) -> str:
    """The work that a score file under `root` belongs to: its mass, quartet or BWV number."""
    relative = path.relative_to(root)
    if collection == "palestrina":
        mass = re.search(r"(?m)^!!!OPR: *(.*)$", path.read_text("latin-1"))
        return f"palestrina {mass[1].strip() if mass else relative.stem}"
    if collection.startswith("bach"):
        return f"bach {relative.stem.split('.')[0]}"
    if len(relative.parts) > 2:  # the movements of a work share a folder
        return str(relative.parent)
    return str(relative.with_suffix(""))


def rank(name: str) -> int:
    """A fixed random number for a name, by SHA-256."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
