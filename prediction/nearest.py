"""The vectors that are nearest to a query. Legend: N vectors, Q queries, K candidates, D width.

faiss finds candidates where it is installed, numpy elsewhere. Both sum in single precision, each in its own order, so either takes some
more than are asked for; these are compared in double precision, and the answer is the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

MARGIN = 1e-4
"""More than the products of unit vectors in single precision differ between two ways to sum."""


def nearest(vectors_ND: np.ndarray, queries_QD: np.ndarray, top: int) -> Iterator[list[tuple[int, float]]]:
    """Of each query the `top` vectors with the largest product, at most N: (place, product), the first of equal ones first. All are unit
    vectors in fp32."""
    top = min(top, len(vectors_ND))
    for query_D, places_K in zip(queries_QD, _candidates(vectors_ND, queries_QD, top), strict=True):
        places_K = np.sort(places_K)
        # Not a matrix product: its sums of a row depend on which others there are.
        products_K = (vectors_ND[places_K].astype(np.float64) * query_D).sum(axis=1)
        best = np.argsort(-products_K, kind="stable")[:top]
        yield [(int(places_K[k]), float(products_K[k])) for k in best]


def _candidates(vectors_ND: np.ndarray, queries_QD: np.ndarray, top: int) -> Iterator[np.ndarray]:
    """Of each query places_K, among them those of the `top` largest products."""
    try:
        import faiss
    except ImportError:
        for query_D in queries_QD:
            products_N = vectors_ND @ query_D
            least = np.partition(products_N, -top)[-top]
            yield np.flatnonzero(products_N > least - MARGIN)
        return
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(vectors_ND.shape[1])
    index.add(np.ascontiguousarray(vectors_ND))
    for query_D in queries_QD:
        query_1D = np.ascontiguousarray(query_D[None])
        products_1K, _ = index.search(query_1D, top)
        yield index.range_search(query_1D, float(products_1K[0, -1]) - MARGIN)[2]
