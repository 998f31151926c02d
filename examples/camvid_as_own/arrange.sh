#!/bin/sh
# Lays CamVid, as in the SegNet tutorial, out as two domains of one's own, by links: sh arrange.sh CAMVID OUT
# Day is the source: day/train, and day/test of the sequence Seq05VD. Dusk, the sequence 0001TP, is the target: its
# training images lose their labels (dusk/train); those of test/ keep them. Frames up to 009450 are for the score
# (dusk/val), as in --dataset=camvid; the later ones (dusk/final) are for a last look when every choice has been made.
# What a copy lacks is left out; val/ is not used.
set -eu
camvid=$(cd "$1" && pwd)
out=$2

put() { # put DOMAIN/SPLIT labelled|unlabelled: links image and label of $folder/$name
  mkdir -p "$out/$1/images"
  ln -sf "$camvid/$folder/$name" "$out/$1/images/$name"
  [ "$2" = labelled ] || return 0
  mkdir -p "$out/$1/labels"
  ln -sf "$camvid/${folder}annot/$name" "$out/$1/labels/$name"
}

stop() { # stop MESSAGE
  echo "error: $1" >&2
  exit 1
}

for folder in train test; do
  for needed in "$folder" "${folder}annot"; do
    [ -d "$camvid/$needed" ] || stop "$camvid/$needed is not there: the first argument must be CamVid's folder"
  done
  for path in "$camvid/$folder"/*; do
    name=${path##*/}
    case $folder/$name in
      train/0006R0_*.png | train/0016E5_*.png) put day/train labelled ;;
      train/0001TP_*.png) put dusk/train unlabelled ;;
      test/Seq05VD_*.png) put day/test labelled ;;
      test/0001TP_00[89]???.png | test/0001TP_010???.png)
        frame=${name#0001TP_}
        if [ "${frame%.png}" -le 9450 ]; then put dusk/val labelled; else put dusk/final labelled; fi
        ;;
      *) stop "$path is no frame of $folder/ in CamVid's SegNet split: take it out of the folder" ;;
    esac
  done
done
