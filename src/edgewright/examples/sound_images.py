"""Images that can be decoded, told from those that cannot."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

from edgewright.errors import DataError, InputError
from edgewright.kinds import IMAGE
from edgewright.preprocess.decode import decode
from edgewright.tables import Table
from edgewright.tables.image_folder import Image

_THREADS: Final = 4  # Pillow decodes outside of the GIL


def without_broken_images(table: Table) -> Table:
    """The rows whose image can be decoded, and a note on the others; texts stay as they are.

    Raises:
        DataError: there is no other row.
    """
    if table.kind is not IMAGE:
        return table
    images = [each for each in table.contents if not isinstance(each, str)]
    with ThreadPoolExecutor(_THREADS) as pool:
        faults = list(pool.map(_fault, images))
    broken = [row for row, fault in enumerate(faults) if fault]
    if not broken:
        return table
    told = f"{table.place(broken[0])}: {faults[broken[0]]}"
    if len(broken) == len(table):
        raise DataError(f"{table.source}: none of {len(table)} images can be decoded; {told}")
    sound = [row for row, fault in enumerate(faults) if not fault]
    return table.rows(
        sound, f"{table.source}: left out {len(broken)} images that cannot be decoded; {told}"
    )


def _fault(image: Image) -> str | None:
    try:
        decode(image.read(), image.name)
    except InputError as error:
        return str(error)
    return None
