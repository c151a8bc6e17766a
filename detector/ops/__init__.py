"""Operators on images, feature maps and regions; importing this package loads the native libraries."""

from detector.ops._library import built_for_cuda, cuda_kernels_missing
from detector.ops.normalize import normalization_table, normalize_images
from detector.ops.roi_pool import RoIPool, roi_pool
from detector.ops.selective_search import SelectiveSearchResult, selective_search
from detector.ops.selective_search_config import SelectiveSearchConfig
from detector.ops.spp_pool import SpatialPyramidPool, spp_pool, whole_map_rois

__all__ = [
    "RoIPool",
    "SelectiveSearchConfig",
    "SelectiveSearchResult",
    "SpatialPyramidPool",
    "built_for_cuda",
    "cuda_kernels_missing",
    "normalization_table",
    "normalize_images",
    "roi_pool",
    "selective_search",
    "spp_pool",
    "whole_map_rois",
]
