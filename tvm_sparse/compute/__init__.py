"""What a layer computes, as tensor expressions; how is the schedules' business."""
