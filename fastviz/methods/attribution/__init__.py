"""What in an image makes a target: occlusion, gradients, class activation maps, segmentation."""
