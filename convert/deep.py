"""inspect --deep: every number of a checkpoint compared with the checksums that were recorded when it was written."""

import threading
from dataclasses import replace
from shlex import quote

from convert.convert import open_source
from convert.describe import Finding, FolderReport
from convert.errors import read_errors
from convert.file_sums import damaged_files, known_sums
from convert.orbax_folder import OrbaxSource
from lumina_jax.errors import UserError
from lumina_jax.places import Place
from lumina_jax.progress import ProgressDisplay
from lumina_jax.train.deep_check import deep_damage, stored_bytes
from lumina_jax.train.integrity import saved_checksums


def verified(report: FolderReport, path: str | Place) -> FolderReport:
    """``report`` on the checkpoint at ``path``, with what reading all of it found; as it was where the folder cannot be opened."""
    try:
        source = open_source(path)
        with read_errors(source.folder):
            found = _orbax(source) if isinstance(source, OrbaxSource) else _files(source.folder)
    except UserError as error:
        found = [Finding("problem", str(error))]
    findings = tuple(dict.fromkeys((*report.findings, *found)))
    broken = any(finding.topic == "problem" for finding in found)
    again = f"mend this, then: python run.py convert inspect --deep {quote(str(path))}"
    return replace(report, findings=findings, next_command=again if broken else report.next_command)


def _orbax(source: OrbaxSource) -> list[Finding]:
    checkpoint = source.checkpoint
    with ProgressDisplay(f"verifying {checkpoint}", stored_bytes(checkpoint), unit="MB", unit_size=10**6) as progress:
        reason = deep_damage(checkpoint, progress.advance)
    if reason:
        return [Finding("problem", f"{checkpoint} is damaged: {reason}; copy it again from where it is whole")]
    if not (saved := saved_checksums(checkpoint)):
        return [
            Finding("note", f"{checkpoint} is of an older version, which recorded no checksums: nothing was compared")
        ]
    return [Finding("verified", f"all numbers of its {len(saved)} arrays are as they were saved")]


def _files(folder: Place) -> list[Finding]:
    if not (sums := known_sums(folder)):
        return [Finding("note", "no checksums of these files were recorded: nothing was compared")]
    lock, size = threading.Lock(), sum((folder / name).stat().st_size for name in sums if (folder / name).is_file())
    with ProgressDisplay(f"verifying {folder}", size, unit="MB", unit_size=10**6) as progress:

        def advance(count: int) -> None:
            with lock:
                progress.advance(count)

        damaged = damaged_files(folder, sums, advance)
    if damaged:
        return [Finding("problem", reason) for reason in damaged]
    return [Finding("verified", f"all bytes of {', '.join(sums)} are as they were written")]
