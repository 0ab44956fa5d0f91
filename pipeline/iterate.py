"""`python -m pipeline.iterate SOURCE`: go through a scan's batches without training, and prove their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipeline.cli import Outcome, command, progress
from pipeline.config import StreamConfig
from pipeline.sampling.options import given_sampling, refuse_idle, sampling_options
from pipeline.scan.options import declaration_options

_DEFAULTS = StreamConfig()


@command("ptychozarr.iterate/1")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--epochs", default=_DEFAULTS.epochs, show_default=True, help="how often to go through the scan")
@sampling_options(batches=["shuffled", "cluster", "sequential"])
@click.option("--seed", default=_DEFAULTS.seed, show_default=True, help="of the order")
@click.option("--num-workers", default=0, show_default=True, help="DataLoader workers; the order is the same for any")
@click.option("--content-hash", is_flag=True, help="also hash every delivered byte")
@click.option("--catalog", type=click.Path(path_type=Path), help="look SOURCE up by name here")
@declaration_options
def main(
    *, source: Path, epochs: int, seed: int, num_workers: int, content_hash: bool, catalog: Path | None,
    key: str | None, axes: str | None, quantity: str | None, contract: str | None, positions: str | None,
    pixel_size_m: float | None, position_origin: str | None, **sampling: Any,
) -> Outcome:  # fmt: skip
    """Go through the batches of SOURCE (a store, a legacy NPZ, or a catalog's name) and say what they cost.

    The order hash depends on the store and the sampling options alone, never on workers or threads.
    """
    config = StreamConfig(epochs=epochs, seed=seed, **given_sampling(sampling))
    refuse_idle(given_sampling(sampling), gridsize=config.gridsize, batches=config.batches)
    from pipeline.scan.declaration import Declaration
    from pipeline.stream.measure import iterate
    from pipeline.stream.scan_stream import ScanStream
    from pipeline.stream.source import opened_store
    from pipeline.stream.waiting import faults_of_workers

    said = Declaration(key=key, axes=axes, quantity=quantity, contract=contract, positions=positions,
                       pixel_size_m=pixel_size_m, position_origin=position_origin)  # fmt: skip
    with opened_store(source, said, catalog=catalog) as store:
        stream = ScanStream(store, config)
        total = stream.plan(0).frames.size * epochs * stream.members.shape[1]
        with faults_of_workers():
            told = iterate(stream, num_workers=num_workers, content=content_hash, progress=progress(str(source), total))
        frame_bytes = 4 * stream.record.arrays["diffraction"].layout.shape[1] ** 2
        plan, n_chunks = stream.plan(0), stream.record.arrays["diffraction"].layout.n_chunks
    data = {
        "order_sha256": told.order_sha256, "content_sha256": told.content_sha256, "batches": told.batches,
        "frames": told.frames, "frames_per_s": told.frames_per_s, "cpu_s_per_gb": told.cpu_s_per_gb(frame_bytes),
        "chunks_decoded": told.chunks_decoded, "chunks": n_chunks, "peak_bytes": told.peak_bytes,
        "unvisited_per_epoch": plan.n_unvisited, "invalid_frames": stream.n_invalid, "order": dict(stream.identity()),
    }  # fmt: skip
    decoded = "" if told.chunks_decoded is None else f", {told.chunks_decoded} chunks decoded of {n_chunks}"
    lines = [
        f"{source}: {told.batches} batches, {told.frames} frames in {told.seconds:.2f} s ({told.frames_per_s:,.0f}/s), "
        f"{data['cpu_s_per_gb']:.2f} CPU-s per GB{decoded}; {plan.n_unvisited} frames unvisited an epoch",
        f"order_sha256   {told.order_sha256}",
        *([f"content_sha256 {told.content_sha256}"] if told.content_sha256 else []),
    ]
    return Outcome(data=data, text="\n".join(lines), warnings=stream.notes)


if __name__ == "__main__":
    main()
