"""Projection of features to unit vectors: PCA, then L2 normalisation (Douze et al., CVPR 2018, section 3)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowshot.core.errors import InputError
from lowshot.core.files import missing
from lowshot.core.seeds import stream
from lowshot.data.rows import Rows, blocks, sample_rows

# Number of rows to fit the PCA on. The paper uses 1M rows, but an estimate of 2048 x 2048 covariances does not improve
# beyond this number.
N_SAMPLE = 100_000


@dataclass(frozen=True)
class Projection:
    """A PCA, then L2 normalisation: `mean` (D,) and `components` (d, D), float32. Both are None if there is no PCA."""

    mean: np.ndarray | None = None
    components: np.ndarray | None = None

    @property
    def input_dim(self) -> int | None:
        """D, or None if features of any dimension are accepted."""
        return None if self.mean is None else len(self.mean)

    def output_dim(self, input_dim: int) -> int:
        return input_dim if self.components is None else len(self.components)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Project features (n, D) to unit vectors, float32 (n, d). Zero rows stay zero."""
        vectors = np.empty((len(features), self.output_dim(features.shape[1])), np.float32)
        for rows in blocks(len(features)):
            vectors[rows] = self._project(np.asarray(features[rows], np.float32))
        return vectors

    def accepts(self, dim: int) -> bool:
        """Whether features of this dimension can be projected, or have been projected already."""
        return dim in (self.input_dim or dim, self.output_dim(dim))

    def finish(self, features: np.ndarray) -> np.ndarray:
        """Project features (n, D), or normalise features (n, d) that have been projected already."""
        is_projected = features.shape[1] != self.input_dim and self.components is not None
        return (Projection() if is_projected else self)(features)

    def _project(self, features: np.ndarray) -> np.ndarray:
        if self.mean is not None:
            features = (features - self.mean) @ self.components.T
        lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        return features / np.where(lengths > 0, lengths, 1)


def read_projection_file(path: Path) -> Projection:
    """Read a linear transform that faiss has written (`faiss.write_VectorTransform`), such as PCAR256.vt of the release
    of Douze et al. (2018): a PCA with a random rotation.

    faiss computes A x + b. Here it is components (x - mean), with components = A and a mean that A maps to -b.
    """
    import faiss

    if not path.is_file():
        raise missing(path)
    try:
        owner = faiss.read_VectorTransform(str(path))  # keeps the memory of what it is cast to
        stored = faiss.downcast_VectorTransform(owner)
        matrix = faiss.vector_to_array(stored.A).reshape(stored.d_out, stored.d_in)
        bias = faiss.vector_to_array(stored.b) if stored.have_bias else np.zeros(stored.d_out, np.float32)
    except (RuntimeError, ValueError, AttributeError, MemoryError) as error:
        cause = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise InputError(f"{path}: not a linear transform of faiss ({cause[0]})") from None
    if not (np.isfinite(matrix).all() and np.isfinite(bias).all() and len(bias) == len(matrix)):
        raise InputError(f"{path}: its numbers are not finite, or do not fit together")
    mean = np.linalg.lstsq(matrix.astype(np.float64), -bias.astype(np.float64), rcond=None)[0]
    if not np.allclose(matrix @ mean, -bias, atol=1e-4 * max(1.0, np.abs(bias).max(initial=0))):
        raise InputError(f"{path}: its bias is not the image of a mean. Use a PCA, or another transform of full rank")
    return Projection(mean.astype(np.float32), matrix)


def fit_projection(rows: Rows | np.ndarray, dim: int | None, seed: int) -> Projection:
    """Fit a PCA of features (N, D) to `dim` dimensions on `N_SAMPLE` rows drawn at random.

    There is no PCA (only normalisation) if `dim` is None or not below D. The output has at most as many dimensions as
    there are rows. The paper adds a random rotation after the PCA; it is left out, because inner products do not depend
    on it.
    """
    if dim is None or rows.shape[1] <= dim:
        return Projection()
    from sklearn.decomposition import PCA  # the import takes a second, and projecting does not need it

    n_rows = len(rows)
    chosen = np.arange(n_rows)
    if n_rows > N_SAMPLE:
        chosen = np.sort(stream(seed, "pca").choice(n_rows, N_SAMPLE, replace=False))
    sample = sample_rows(rows, chosen)
    pca = PCA(min(dim, n_rows), svd_solver="covariance_eigh").fit(sample)
    return Projection(pca.mean_.astype(np.float32), pca.components_.astype(np.float32))
