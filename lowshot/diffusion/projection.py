"""Projection of features to unit vectors: PCA, then L2 normalisation (Douze et al., CVPR 2018, section 3)."""

from dataclasses import dataclass

import numpy as np

from lowshot.core.seeds import stream
from lowshot.data.rows import Rows, blocks, sample_rows

# Number of rows to fit the PCA on. The paper uses 1M rows, but an estimate of 2048 x 2048 covariances does not improve
# beyond this number.
N_SAMPLE = 100_000


@dataclass(frozen=True)
class Projection:
    """A PCA, then L2 normalisation: `mean` (D,) and orthonormal `components` (d, D), float32. Both are None if there
    is no PCA."""

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

    def _project(self, features: np.ndarray) -> np.ndarray:
        if self.mean is not None:
            features = (features - self.mean) @ self.components.T
        lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        return features / np.where(lengths > 0, lengths, 1)


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
