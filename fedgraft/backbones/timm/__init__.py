"""Image towers of timm (Wightman 2019), through the optional extra `timm`."""
