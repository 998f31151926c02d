"""A renderer of miniature street scenes in the raw layouts of GTA5, SYNTHIA, Cityscapes and Cross-City.

``codes`` and ``domains`` are tables, ``canvas``, ``vehicles``, ``objects`` and ``scenes`` paint a street, ``renderer``
makes a picture of it, ``layouts`` and ``files`` write it as the real archives do, ``generation`` makes whole data sets.
"""
