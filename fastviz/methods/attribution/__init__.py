"""Attribution: which parts of an image a target depends on, by occlusion, gradients, CAMs and segmentation."""
