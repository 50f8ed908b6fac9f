"""Takes identities out of DICOM files.

Only elements that are listed here are read and written to a new file. The Basic Application Level Confidentiality
Profile of PS3.15 E with the Retain UIDs Option: everything of its table E.1-1 but UIDs is left out, and with it every
private element, curve, overlay, comment and the preamble; elements that an image must have are there and empty. A
list of what is kept needs no knowledge of what else a file may hold. UIDs are kept so that a segmentation can say of
which images it is. Pixels are not looked at: a file that says of itself that they show an identity (Burned In
Annotation) is refused.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from app.errors import ExpandsTooLarge, IdentifyingPixels, InvalidRequest
from app.imaging.dicom import series
from app.imaging.dicom.files import PIXELS, explained, is_dicom, opened, pydicom, without_pixels
from app.imaging.dicom.pixels import kind_of
from app.imaging.dicom.structures import HEAD_BYTES, is_structure_set

UIDS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "ReferencedSOPClassUID",
    "ReferencedSOPInstanceUID",
    "DimensionOrganizationUID",
)
IMAGE = (
    *("ImageType", "Modality", "SeriesNumber", "InstanceNumber", "AcquisitionNumber", "TemporalPositionIdentifier"),
    *("TriggerTime", "EchoTime", "EchoNumbers", "Laterality", "ImageLaterality", "PatientOrientation"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelAspectRatio"),
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "LUTDescriptor", "LUTData", "WindowCenter"),
    *("WindowWidth", "VOILUTFunction", "LossyImageCompression", "LossyImageCompressionRatio", "BurnedInAnnotation"),
    *("FrameTime", "FrameTimeVector", "CineRate", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", *PIXELS),
)
PLACE = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("SliceLocation", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelMeasuresSequence"),
    *("PlaneOrientationSequence", "PlanePositionSequence", "PixelValueTransformationSequence", "FrameContentSequence"),
    *("DimensionIndexValues", "InStackPositionNumber", "TemporalPositionIndex", "DimensionOrganizationType"),
    *("DimensionOrganizationSequence", "DimensionIndexSequence", "DimensionIndexPointer", "FunctionalGroupPointer"),
)
SEGMENTS = (
    *("SegmentationType", "SegmentationFractionalType", "MaximumFractionalValue", "SegmentsOverlap"),
    *("SegmentSequence", "SegmentNumber", "SegmentLabel", "SegmentAlgorithmType", "SegmentIdentificationSequence"),
    *("ReferencedSegmentNumber", "SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"),
    *("CodeValue", "CodingSchemeDesignator", "CodeMeaning", "DerivationImageSequence", "SourceImageSequence"),
    *("DerivationCodeSequence", "PurposeOfReferenceCodeSequence", "ReferencedFrameNumber", "ReferencedSeriesSequence"),
    *("ReferencedInstanceSequence",),
)
IDENTIFIERS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
"""What an image must state of patient and study: empty, or kept where `TOPOSERVE_DICOM_IDENTIFIERS=keep` says so."""
STRUCTURES = (
    *("StructureSetROISequence", "ROINumber", "ROIName", "ROIContourSequence", "ReferencedROINumber"),
    *("ContourSequence", "ContourGeometricType", "NumberOfContourPoints", "ContourData"),
)
"""What is kept of a structure set beside UIDs: its regions, with the names that tell their classes."""
KEPT = (*UIDS, *IMAGE, *PLACE, *SEGMENTS)
"""Keywords of all elements that are kept, at any depth."""
METHOD = "PS3.15 Basic Profile, Retain UIDs"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PROFILE, _RETAIN_UIDS = "113100", "113110"
_IMPLEMENTATION = "2.25.147695129934958890976538848234337827601"
"""Class UID of what wrote the file, made from a UUID (PS3.5 B.2)."""
MOST_BYTES = 1024**3
"""Of all files of a series once identities are out."""


def cleaned(stream: BinaryIO, into: IO[bytes], *, keep: bool, boundary: str | None = None) -> list[str]:
    """Write a DICOM file, or a zip of the DICOM files of a zip or of the parts of a multipart body, without identities.

    keep      whether `IDENTIFIERS` stay
    boundary  of a multipart/related body; None: the stream is a file
    returns   sentences about what its sender may not expect
    The same content gives the same bytes. Raises what reading does, and IdentifyingPixels.
    """
    stream.seek(0)
    if boundary is None and is_dicom(stream.read(512)):
        made, said = _file(stream, keep)
        into.write(made)
        return said
    parts, said = _parts(stream, boundary) if boundary is not None else _entries(stream)
    total = 0
    with zipfile.ZipFile(into, "w", zipfile.ZIP_STORED) as archive:
        for number, part in enumerate(parts):
            made, more = _file(io.BytesIO(part), keep)
            said += [sentence for sentence in more if sentence not in said]
            total += len(made)
            if total > MOST_BYTES:
                raise ExpandsTooLarge(f"The series has more than {MOST_BYTES} bytes. Send a part of it.")
            archive.writestr(zipfile.ZipInfo(f"{number:05d}.dcm"), made)
    return said


def _entries(stream: BinaryIO) -> tuple[Iterator[bytes], list[str]]:
    files = series.listed(stream)
    said = []
    if files.twice:
        said.append(f"{files.twice} files of the archive came twice and were left out.")
    if files.aside:
        said.append(f"{files.aside} files of the archive are no DICOM images and were left out.")
    return (files.archive.read(entry) for entry in files.entries), said


def _parts(stream: BinaryIO, boundary: str) -> tuple[Iterator[bytes], list[str]]:
    """The parts of a multipart/related body (RFC 2387) that are DICOM files."""
    stream.seek(0)
    mark = b"--" + boundary.encode("latin-1", "replace")
    whole = stream.read()
    at, found = whole.find(mark), []
    while at >= 0 and not whole.startswith(mark + b"--", at):
        head = whole.find(b"\r\n\r\n", at)
        end = whole.find(b"\r\n" + mark, head)
        if head < 0 or end < 0:
            raise InvalidRequest("The multipart/related body ends before its last boundary. Send it again.")
        found.append((head + 4, end))
        at = end + 2
    if not found:
        raise InvalidRequest("The multipart/related body has no part with its boundary. Send DICOM files as parts.")
    return (whole[start:end] for start, end in found), []


def _file(stream: BinaryIO, keep: bool) -> tuple[bytes, list[str]]:
    """The file with what is kept, in its transfer syntax; uncompressed where it was deflated."""
    dicom = pydicom()
    wanted = (*KEPT, *IDENTIFIERS) if keep else KEPT
    stream.seek(0)
    if is_structure_set(stream.read(HEAD_BYTES)):
        wanted = (*UIDS, *STRUCTURES)
        found = without_pixels(stream, tags=wanted)
    else:
        found = opened(stream, pixels=True, tags=wanted)
        kind_of(found)  # refused now rather than after it was stored
    if not keep and str(found.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise IdentifyingPixels(
            "The DICOM file says that text is burned into its pixels (Burned In Annotation YES), which may name the"
            " patient. Blank the text and send it with NO, or let the operator keep identifiers."
        )
    with explained():
        made = _filtered(found, frozenset(dicom.tag.Tag(name) for name in wanted))
        made.SOPClassUID = made.get("SOPClassUID") or _SECONDARY_CAPTURE
        for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            if not made.get(name):
                setattr(made, name, _own_uid(found, name))
        for name in IDENTIFIERS:
            if name not in made:
                setattr(made, name, "")
        if not keep:
            made.PatientIdentityRemoved, made.DeidentificationMethod = "YES", METHOD
            made.DeidentificationMethodCodeSequence = [_code(_PROFILE), _code(_RETAIN_UIDS)]
        if keep and (charset := found.get("SpecificCharacterSet")):
            made.SpecificCharacterSet = charset
        made.file_meta = dicom.dataset.FileMetaDataset()
        made.file_meta.TransferSyntaxUID = found.file_meta.TransferSyntaxUID
        made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        made.file_meta.ImplementationClassUID, made.file_meta.ImplementationVersionName = _IMPLEMENTATION, "TOPOSERVE"
        written = io.BytesIO()
        dicom.dcmwrite(written, made, enforce_file_format=True)
    said = []
    if str(found.get("LossyImageCompression", "")).strip() == "01":
        said.append("The image was compressed with loss before it came here; thin structures may have suffered.")
    return written.getvalue(), said


def _filtered(found: Any, wanted: frozenset[Any]) -> Any:
    """The elements that are wanted, in sequences as well."""
    dicom = pydicom()
    made = dicom.Dataset()
    for element in found:
        if element.tag not in wanted:
            continue
        if element.VR == "SQ":
            made.add_new(element.tag, "SQ", [_filtered(item, wanted) for item in element.value])
        else:
            made.add(element)
    made.set_original_encoding(*found.original_encoding, "iso8859")
    return made


def _own_uid(found: Any, name: str) -> str:
    """A UID where a file has none: the same for the same pixels."""
    content = next(bytes(found[each].value) for each in PIXELS if each in found)
    digest = hashlib.sha256(name.encode() + content).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _code(value: str) -> Any:
    dicom = pydicom()
    meanings = {_PROFILE: "Basic Application Confidentiality Profile", _RETAIN_UIDS: "Retain UIDs Option"}
    code = dicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meanings[value]
    return code
