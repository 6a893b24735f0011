"""Clips as telephones and music shops make them."""

from __future__ import annotations

import io
import struct

import av
import numpy as np

TURNS = {(0, 1, -1, 0): -1, (-1, 0, 0, -1): 2, (0, -1, 1, 0): 1}
"""Matrix of a rotation mark -> quarter turns against the clock that show the clip."""


def marked(clip: bytes, matrix: tuple[int, ...]) -> bytes:
    """An mp4 with a rotation mark. A telephone held upright writes (0, 1, -1, 0): turn it clockwise to show it. The matrix stands
    in the track header, 40 bytes behind its version, as 16.16 fixed point numbers with a column of 2.30 ones."""
    place = clip.index(b"tkhd") + 4 + 40
    a, b, c, d = (number << 16 for number in matrix)
    return clip[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + clip[place + 36 :]


def with_cover(clip: bytes) -> bytes:
    """An mp4 whose first stream is a black cover of 32 x 32 pixels. FFmpeg writes covers (in udta) behind the tracks; other
    programs do not."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(clip)) as source, av.open(buffer, "w", format="mp4") as target:
        cover = target.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = target.add_stream_from_template(source.streams.video[0])
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        picture.pts = 0
        target.mux([*cover.encode(picture), *cover.encode()])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    data = buffer.getvalue()
    start, tracks, covers = (data.index(name) - 4 for name in (b"moov", b"trak", b"udta"))
    assert start < tracks < covers
    return data[:tracks] + data[covers:] + data[tracks:covers]
