"""What can be chosen of mining and of generators."""

from typing import Literal

Scope = Literal["global", "superclass"]
RuleName = Literal["hariharan2017", "ghosted2018"]
KMeans = Literal["faiss", "published"]
PairSource = Literal["centroids", "features"]
PairScope = Literal["all", "superclass"]
