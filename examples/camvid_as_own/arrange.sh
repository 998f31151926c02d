#!/bin/sh
# Lays CamVid, as in the SegNet tutorial, out as two domains of one's own, by links: sh arrange.sh CAMVID OUT
# Day is the source. Dusk, the sequence 0001TP, is the target: its training images lose their labels, those of test/
# keep them for the score.
set -eu
camvid=$(cd "$1" && pwd)
put() { # put FOLDER DOMAIN/SPLIT LABELS, file names on standard input
  mkdir -p "$out/$2/images"
  [ "$3" = unlabelled ] || mkdir -p "$out/$2/labels"
  while read -r name; do
    ln -sf "$camvid/$1/$name" "$out/$2/images/$name"
    [ "$3" = unlabelled ] || ln -sf "$camvid/${1}annot/$name" "$out/$2/labels/$name"
  done
}
out=$2
ls "$camvid/train" | grep -v '^0001TP' | put train day/train labelled
ls "$camvid/train" | grep '^0001TP' | put train dusk/train unlabelled
ls "$camvid/test" | put test dusk/val labelled
